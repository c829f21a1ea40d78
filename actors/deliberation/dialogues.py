"""The driver of conversations: turn by turn through an engine and an environment.

::

    engine.generate(tokens so far) ─▶ a turn ─▶ environment.reply(state, turn)
          ▲                                            │ in a thread, under a deadline
          └──── tokens so far + tokens of the reply ◀──┘ or the end ─▶ Completion

Each sample of a request is a conversation of its own and waits for no sibling. Each turn is a new
request to the engine, with all tokens so far as its prompt, under the weights of that moment; so
weights that come between two turns, or within one, are accounted for token by token. What the
environment says gets the version of the turn before it, log-prob 0 and loss mask 0.

A sample ends when the environment says so (``stop``), or with ``length`` when its sampled tokens,
its turns or the tokens of its replies are spent: a reply that does not fit any more is recorded as
text and not appended. An interrupted sample carries where it stands as plain data. An environment
that raises, hangs, or answers nonsense fails its sample: bounded in time, never a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from actors.rendering import PromptRenderer
from actors.rollout import EngineFailedError
from rewards.threads import Threads
from safeladder.conversation import (
    ASSISTANT,
    Conversation,
    Environment,
    EnvironmentFailedError,
    ModelTurn,
    Reply,
    SampleFailure,
)
from safeladder.environment_config import EnvironmentConfig
from safeladder.images import PromptImage
from safeladder.partials import PartialCompletion
from safeladder.ports import RolloutEngine
from safeladder.records import Completion, FinishReason, Message, Prompt, Sampling

T = TypeVar("T")


class _StoppedError(Exception):
    """The request was interrupted while the environment was to answer."""


@dataclass(eq=False, slots=True)
class _Request:
    """One call of ``generate``."""

    name: str
    prompt: Prompt
    sampling: Sampling
    images: Sequence[PromptImage] = ()
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    at_engine: set[str] = field(default_factory=set)
    """Names of the turns that the engine works on."""


class EnvironmentDialogues:
    """``ports.Dialogues`` with one environment, through one engine."""

    def __init__(
        self,
        engine: RolloutEngine,
        environment: Environment,
        config: EnvironmentConfig,
        renderer: Callable[[], PromptRenderer],
    ) -> None:
        self._engine = engine
        self._environment = environment
        self._config = config
        self._make_renderer = renderer
        self._renderer: PromptRenderer | None = None
        self._threads = Threads("the environment", config.concurrency)
        self._requests: dict[str, _Request] = {}

    @property
    def is_resumable(self) -> bool:
        """See ``ports.Dialogues``."""
        return self._environment.is_resumable

    async def start(self) -> None:
        """See ``ports.Dialogues``."""
        self._renderer = await asyncio.to_thread(self._make_renderer)
        await asyncio.to_thread(self._environment.start)

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncGenerator[Completion | PartialCompletion | SampleFailure, None]:
        """See ``ports.CompletionSource``."""
        request = self._requests[request_id] = _Request(request_id, prompt, sampling, images)
        samples = PartialCompletion.all_of(sampling) if begun is None else begun
        tasks = [asyncio.create_task(self._settle(request, sample)) for sample in samples]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del self._requests[request_id]

    async def interrupt(self, request_id: str) -> None:
        """See ``ports.CompletionSource``. Nobody waits for a reply of the environment: it is asked
        for again when the sample goes on."""
        if (request := self._requests.get(request_id)) is not None:
            request.stopped.set()
            for name in list(request.at_engine):
                await self._engine.interrupt(name)

    async def close(self) -> None:
        """See ``ports.Dialogues``."""
        await asyncio.to_thread(self._environment.close)

    @property
    def _rendering(self) -> PromptRenderer:
        if self._renderer is None:
            raise RuntimeError("the dialogues are not started")
        return self._renderer

    async def _settle(
        self, request: _Request, sample: PartialCompletion
    ) -> Completion | PartialCompletion | SampleFailure:
        try:
            return await self._converse(request, sample)
        except EnvironmentFailedError as error:
            return SampleFailure(index=sample.index, detail=str(error))

    async def _converse(
        self, request: _Request, sample: PartialCompletion
    ) -> Completion | PartialCompletion:
        """A sample from where it stands to its end, or to where it is interrupted."""
        prompt = self._rendering.render(request.prompt, images=request.images)
        try:
            if sample.conversation is None:
                sample = await self._open(request, sample)
            while True:
                made = await self._speak(request, sample)
                if made.conversation is None or made.conversation.turn_end is None:
                    return made  # interrupted
                sample = made
                reply = await self._answer(request, sample)
                going = self._append(request, sample, reply)
                if isinstance(going, PartialCompletion):
                    sample = going
                    continue
                conversation, reason = going
                spoken = [text for role, text in conversation.turns if role == ASSISTANT]
                whole = replace(sample, conversation=conversation)
                return whole.finished(prompt, "\n".join(spoken), reason)
        except _StoppedError:
            return sample

    async def _open(self, request: _Request, sample: PartialCompletion) -> PartialCompletion:
        rendered = self._rendering.render(request.prompt, images=request.images)
        text = self._rendering.decode_all(rendered)
        opening = await self._ask(request, lambda: self._environment.begin(request.prompt, text))
        if opening.is_over:
            raise EnvironmentFailedError("the environment ended the conversation before it began")
        tokens = self._rendering.encode_reply(None, opening.text, closes=False)
        if tokens.size > self._config.reply_tokens:
            raise EnvironmentFailedError(
                f"the environment opens with {tokens.size} tokens, more than "
                f"rollout.environment.reply_tokens: {self._config.reply_tokens}"
            )
        conversation = Conversation(
            state=opening.state, facts=opening.facts, turn_start=sample.tokens.size + tokens.size
        )
        told = sample.told(tokens, self._engine.served_version)
        return replace(told, conversation=conversation)

    async def _speak(self, request: _Request, sample: PartialCompletion) -> PartialCompletion:
        """The sample with the model's turn finished (``turn_end``), or as far as it came."""
        conversation = sample.conversation
        assert conversation is not None, "a conversation speaks once it is open"
        if request.stopped.is_set() or conversation.turn_end is not None:
            return sample
        left = request.sampling.max_new_tokens - sample.num_sampled
        if (cap := self._config.max_turn_tokens) is not None:
            left = min(left, cap - (sample.tokens.size - conversation.turn_start))
        limits = replace(request.sampling, num_samples=1, max_new_tokens=sample.tokens.size + left)
        name = f"{request.name}/{sample.index}/{conversation.num_turns}"
        request.at_engine.add(name)
        try:
            asked = (name, request.prompt, limits, [sample], request.images)
            made = [one async for one in self._engine.generate(*asked)]
        finally:
            request.at_engine.discard(name)
        (turn,) = made
        if isinstance(turn, PartialCompletion):
            return turn
        text = self._rendering.decode(turn.tokens[conversation.turn_start :])
        return PartialCompletion(
            index=turn.index,
            tokens=turn.tokens,
            behavior_logprobs=turn.behavior_logprobs,
            token_versions=turn.token_versions,
            loss_mask=turn.loss_mask,
            conversation=replace(
                conversation,
                turns=(*conversation.turns, Message(ASSISTANT, text)),
                turn_end=turn.finish_reason,
            ),
        )

    async def _answer(self, request: _Request, sample: PartialCompletion) -> Reply:
        """What the environment says to the turn that has just ended."""
        conversation = sample.conversation
        assert conversation is not None, "a conversation is answered once it is open"
        turn = ModelTurn(
            number=conversation.num_turns,
            text=conversation.turns[-1].content,
            is_cut=conversation.turn_end == "length",
        )
        return await self._ask(request, lambda: self._environment.reply(conversation.state, turn))

    def _append(
        self, request: _Request, sample: PartialCompletion, reply: Reply
    ) -> PartialCompletion | tuple[Conversation, FinishReason]:
        """The sample with the reply behind it; or how the conversation ended, and why."""
        conversation = sample.conversation
        assert conversation is not None, "a conversation is answered once it is open"
        turns = conversation.turns
        if reply.text:
            turns = (*turns, Message(reply.role or "environment", reply.text))
        after = replace(
            conversation,
            turns=turns,
            state=reply.state,
            facts={**conversation.facts, **reply.facts},
            turn_end=None,
        )
        is_spent = sample.num_sampled >= request.sampling.max_new_tokens
        ended = replace(after, state=None)
        if reply.is_over:
            return ended, "length" if is_spent and conversation.turn_end == "length" else "stop"
        if is_spent or after.num_turns >= self._config.max_turns:
            return ended, "length"
        closes = conversation.turn_end == "stop"
        tokens = self._rendering.encode_reply(reply.role, reply.text, closes=closes)
        num_told = sample.tokens.size - sample.num_sampled
        if num_told + tokens.size > self._config.reply_tokens:
            return ended, "length"
        told = sample.told(tokens, int(sample.token_versions[-1]))
        return replace(told, conversation=replace(after, turn_start=told.tokens.size))

    async def _ask(self, request: _Request, function: Callable[[], Reply]) -> Reply:
        """What the environment returns. Raises ``EnvironmentFailedError`` once its time and its
        tries are spent, ``_StoppedError`` when the request is interrupted meanwhile."""
        tries = 1 + (self._config.max_retries if self._environment.is_resumable else 0)
        detail = ""
        for _ in range(tries):
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return self._checked(await self._until_stopped(request, function))
            except _StoppedError:
                raise
            except TimeoutError:
                detail = f"gave no answer within {self._config.timeout_s:g} s"
            except Exception as error:  # noqa: BLE001 - other people's code: a sample fails by it
                detail = f"failed with {type(error).__name__}: {error}"
            if self._threads.is_dead:
                raise EngineFailedError("the environment hangs in all its threads")
        raise EnvironmentFailedError(f"the environment {detail}")

    async def _until_stopped(self, request: _Request, function: Callable[[], T]) -> T:
        stop = asyncio.create_task(request.stopped.wait())
        answer = asyncio.create_task(self._threads.run(lambda _: function()))
        try:
            await asyncio.wait({stop, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _StoppedError
            return answer.result()
        finally:
            stop.cancel()
            answer.cancel()
            await asyncio.gather(stop, answer, return_exceptions=True)

    def _checked(self, reply: object) -> Reply:
        if not isinstance(reply, Reply) or not isinstance(reply.text, str):
            raise TypeError(f"an environment answers with a Reply, got {type(reply).__name__}")
        plain = (reply.facts, reply.state) if self._environment.is_resumable else (reply.facts,)
        msgspec.json.encode(plain)  # a TypeError for what is no plain data
        return reply
