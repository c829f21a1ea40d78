"""Where a judge's model runs: the port of a backend, and the one in this process.

Owns batching, deadlines and the translation of a completer's failures into causes. It does not
know what is asked. ``rewards.endpoint`` is the backend over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from rewards.images import MAX_IMAGE_BYTES, require_image
from rewards.judging import UnjudgedError
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, Message

_LOAD_S = 600.0
"""Longest wait for a model to load."""
_WARM_UP = (Message("user", "Say yes."),)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Shown(NamedTuple):
    """What a model is shown: a conversation and its images."""

    messages: Sequence[Message]
    images: Sequence[bytes] = ()


class Completer(Protocol):
    """A model in this process, greedy. It may load in its constructor or with the first call.

    A conversation that alone cannot be answered, such as one beyond the model's context, has an
    ``UnjudgedError`` in the place of its answer; an exception is about the whole call.
    """

    async def complete(
        self, messages: Sequence[Sequence[Message]], max_tokens: int
    ) -> Sequence[str | UnjudgedError]:
        """One reply for each conversation, in order, of at most ``max_tokens`` tokens."""
        ...

    async def close(self) -> None:
        """Unload."""
        ...


class LabelCompleter(Completer, Protocol):
    """A completer that can also tell how likely given replies are: needed by ``mode: logits``."""

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> Sequence[list[float] | UnjudgedError]:
        """For each conversation, the natural log-prob of each label as the reply's beginning.

        A label of several tokens has the sum of their log-probs, each given the rendered prompt
        and the label's tokens before: the probability of these tokens in this order. There is no
        division by length and no stop token, so a label must not be the beginning of another.
        """
        ...


class ImageCompleter(LabelCompleter, Protocol):
    """A completer that sees images: its class says ``reads_images = True``. Both methods take
    ``images``, the encoded files of each conversation; they stand in front of the last turn's text.
    A file that is no image has an ``UnjudgedError`` in the place of the answer."""

    reads_images: bool

    async def complete(
        self,
        messages: Sequence[Sequence[Message]],
        max_tokens: int,
        images: Sequence[Sequence[bytes]] = (),
    ) -> Sequence[str | UnjudgedError]:
        """As ``Completer.complete``."""
        ...

    async def label_logprobs(
        self,
        conversations: Sequence[Sequence[Message]],
        labels: Sequence[str],
        images: Sequence[Sequence[bytes]] = (),
    ) -> Sequence[list[float] | UnjudgedError]:
        """As ``LabelCompleter.label_logprobs``."""
        ...


class Backend(Protocol):
    """What a judge asks."""

    async def start(self) -> None:
        """Get ready. Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        ...

    async def reply(
        self, messages: Sequence[Message], max_tokens: int, images: Sequence[bytes] = ()
    ) -> str:
        """The model's reply. Raises ``UnjudgedError``."""
        ...

    async def label_logprobs(
        self, messages: Sequence[Message], labels: Sequence[str], images: Sequence[bytes] = ()
    ) -> list[float]:
        """Natural log-prob of each label as the reply. Raises ``UnjudgedError``."""
        ...

    async def close(self) -> None:
        """Free what ``start`` took."""
        ...


class Local:
    """A completer in this process. Questions that wait together are answered in one batch of at
    most ``batch_size``. One about images of more than ``max_image_bytes``, or put to a completer
    that reads text only, is INVALID(abstain)."""

    def __init__(
        self,
        make: Callable[..., Completer],
        options: Mapping[str, Any],
        timeout_s: float,
        batch_size: int,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self._make = make
        self._options = dict(options)
        self._timeout_s = timeout_s
        self._batch_size = batch_size
        self._max_image_bytes = max_image_bytes
        self._completer: Completer | None = None
        self._replies: Batches[tuple[Shown, int], str] = Batches(
            self._complete, timeout_s, batch_size
        )
        self._scores: dict[tuple[str, ...], Batches[Shown, list[float]]] = {}

    async def start(self) -> None:
        """Construct the completer (in a thread) and have it say one word, so that whatever is
        wrong with the model shows now. Raises ``VerifierUnavailableError``."""
        try:
            async with asyncio.timeout(_LOAD_S):
                completer = await asyncio.to_thread(self._make, **self._options)
                await completer.complete([_WARM_UP], 1)
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            raise VerifierUnavailableError(f"the completer does not start: {detail}") from error
        self._completer = completer

    async def reply(
        self, messages: Sequence[Message], max_tokens: int, images: Sequence[bytes] = ()
    ) -> str:
        """Wait for the batch that this question becomes part of."""
        self._ready(images)
        return await self._replies.ask((Shown(messages, images), max_tokens))

    async def label_logprobs(
        self, messages: Sequence[Message], labels: Sequence[str], images: Sequence[bytes] = ()
    ) -> list[float]:
        """Wait for the batch of questions about the same labels."""
        scorer = cast(LabelCompleter, self._ready(images))
        key = tuple(labels)
        if key not in self._scores:

            async def score(batch: Sequence[Shown]) -> Sequence[list[float] | UnjudgedError]:
                turns = [shown.messages for shown in batch]
                return await scorer.label_logprobs(turns, key, **_pictures(batch))

            self._scores[key] = Batches(score, self._timeout_s, self._batch_size)
        return await self._scores[key].ask(Shown(messages, images))

    async def close(self) -> None:
        """Unload the completer; who still waits gets no reply."""
        completer, self._completer = self._completer, None
        self._replies.close()
        for batches in self._scores.values():
            batches.close()
        self._scores.clear()
        if completer is not None:
            await completer.close()

    def _ready(self, images: Sequence[bytes]) -> Completer:
        if self._completer is None:
            raise VerifierUnavailableError("the completer is not started")
        if images and not getattr(self._completer, "reads_images", False):
            raise UnjudgedError(InvalidCause.ABSTAIN, "this judge reads text only")
        for image in images:
            require_image(image, self._max_image_bytes)
        return self._completer

    async def _complete(self, batch: Sequence[tuple[Shown, int]]) -> Sequence[str | UnjudgedError]:
        limit = max(tokens for _, tokens in batch)
        asked = [shown for shown, _ in batch]
        turns = [shown.messages for shown in asked]
        return await self._ready(()).complete(turns, limit, **_pictures(asked))


def _pictures(batch: Sequence[Shown]) -> dict[str, Any]:
    """The argument ``images``, for completers that know it."""
    images = [shown.images for shown in batch]
    return {"images": images} if any(images) else {}


class Batches(Generic[Question, Answer]):
    """Collects questions of the same moment, asks them together and deals the answers out.

    A batch of several that fails is asked again one by one, in what is left of ``timeout_s``: a
    question that the model cannot take fails alone.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Awaitable[Sequence[Answer | UnjudgedError]]],
        timeout_s: float,
        batch_size: int,
    ) -> None:
        self._answer = answer
        self._timeout_s = timeout_s
        self._batch_size = batch_size
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer. Raises ``UnjudgedError``."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    def close(self) -> None:
        """Cancel what is under way and what waits."""
        if self._worker is not None:
            self._worker.cancel()
        for _, answer in self._waiting:
            answer.cancel()
        self._waiting.clear()

    async def _work(self) -> None:
        await asyncio.sleep(0)  # let questions of the same moment join the first batch
        while self._waiting:
            batch = [w for w in self._waiting[: self._batch_size] if not w[1].done()]
            del self._waiting[: self._batch_size]
            if not batch:
                continue
            try:
                await self._settle(batch)
            finally:
                for _, answer in batch:
                    answer.cancel()

    async def _settle(self, batch: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> None:
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        found = await self._ask([question for question, _ in batch], deadline_s)
        if isinstance(found, UnjudgedError) and len(batch) > 1:
            for question, answer in batch:
                if answer.done():
                    continue
                alone = await self._ask([question], deadline_s)
                _deal(answer, alone if isinstance(alone, UnjudgedError) else alone[0])
            return
        for position, (_, answer) in enumerate(batch):
            _deal(answer, found if isinstance(found, UnjudgedError) else found[position])

    async def _ask(
        self, questions: Sequence[Question], deadline_s: float
    ) -> Sequence[Answer | UnjudgedError] | UnjudgedError:
        """An answer to each question, or why there is none to any."""
        try:
            if asyncio.get_running_loop().time() >= deadline_s:
                raise TimeoutError
            async with asyncio.timeout_at(deadline_s):
                found = await self._answer(questions)
        except TimeoutError:
            detail = f"no reply within {self._timeout_s:g} s"
            return UnjudgedError(InvalidCause.TIMEOUT, detail, retryable=True)
        except UnjudgedError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the decision: INVALID, if it fails alone too
            return UnjudgedError(InvalidCause.ERROR, f"{type(error).__name__}: {error}")
        if len(found) != len(questions):
            detail = f"{len(found)} replies to {len(questions)} questions"
            return UnjudgedError(InvalidCause.MALFORMED, detail)
        return found


def _deal(answer: asyncio.Future[Answer], found: Answer | UnjudgedError) -> None:
    if answer.done():
        return
    if isinstance(found, UnjudgedError):
        answer.set_exception(found)
    else:
        answer.set_result(found)
