"""Greedy answers of one policy version to held-out prompts, judged by the run's own verifiers.

Owns: which engines may answer, sending every prompt to one of them, asking again when it dies, and
scoring the answers. An engine gets a prompt only after it has echoed the version's digest in this
evaluation, since a replacement starts with the base model; an answer with a token of another
version is not taken. What the answers mean is ``evals.held_out``'s business.

Before and after RL the driver waits for it (``run``). While RL goes on it is fed with what the loop
polls, and only engines that serve the version already are asked (``probe_keeper``).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.lease_answers import GeneratedGroup
from actors.rollout import EngineStatus
from actors.verifier import ScoredGroup
from cluster.engines import LOAD_CALL_S
from cluster.fleet import Exhausted, Fleet, FleetEvent, Joined, Lost, Reply
from cluster.remote import fetch
from cluster.rollout_fleets import RolloutFleets
from cluster.weight_store import PublishedWeights
from safeladder.config import Config
from safeladder.errors import SafeladderError, VerifierUnavailableError
from safeladder.records import Completion, GroupKey, Lease, Prompt, Sampling, Verdict

EVALUATION_EPOCH = -1
"""Data epoch in the keys of evaluation leases; training uses 0 and up."""
FETCH_DEADLINE_S = 60.0
MAX_TRIES = 3
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutAnswer:
    """One greedy answer and what the run's verifiers said about it."""

    prompt: Prompt
    completion: Completion
    verdicts: Mapping[str, Verdict]
    """Principle → verdict, INVALID ones included."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Context of an evaluation's own calls; the fleets may still answer calls of the loop."""

    evaluation: int
    """Whose call it is."""
    index: int
    """Of the prompt."""


@dataclass(frozen=True, slots=True)
class _Load:
    """Context of letting an engine load the version that must answer."""


@dataclass(slots=True)
class _Item:
    prompt: Prompt
    tries: int = 0
    completion: Completion | None = None
    payload: Any = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)


class Evaluation:
    """One pass over held-out prompts. ``step`` is called until ``is_done``. Only the version in
    ``weights`` may answer; None means the base model that every engine starts with.

    ``principles`` are those that judge each prompt, if not all of its route. With ``serving`` the
    engines named there serve ``version`` already, and nobody else is asked.
    """

    def __init__(
        self,
        config: Config,
        prompts: Sequence[Prompt],
        rollout: RolloutFleets,
        verifiers: Mapping[str, Fleet],
        fence: int,
        weights: PublishedWeights | None,
        *,
        principles: Sequence[Collection[str]] | None = None,
        serving: Collection[str] | None = None,
        version: int | None = None,
        epoch: int = EVALUATION_EPOCH,
    ) -> None:
        self._number = next(_NUMBERS)
        self._config = config
        self._fence = fence
        self._weights = weights
        self._version = weights.manifest.version if weights else version or 0
        self._epoch = epoch
        self._principles = principles or [config.routes[prompt.route] for prompt in prompts]
        self._loads = serving is None
        self._serving = set(serving or ())
        """Engines that serve the version that must answer."""
        self._items = [_Item(prompt) for prompt in prompts]
        self._rollout = rollout
        self._verifiers = verifiers
        self._to_generate = deque(range(len(self._items)))
        self._to_score: deque[tuple[int, str]] = deque()
        self._open = 0
        """Prompts and answers that are out, loads not counted."""
        for engine in rollout.ready if self._loads else ():
            self._prepare(engine)
        self._deadline = time.monotonic() + config.rollout.group_deadline_s * max(
            1, len(prompts) // config.evaluation.batch_size
        )

    def run(self) -> list[HeldOutAnswer]:
        """Evaluate everything; a prompt that cannot be answered or judged is left out and thereby
        fails the pairing, never counted as a number. Raises ``SafeladderError`` past the deadline
        or when a fleet is spent."""
        while not self.is_done:
            if time.monotonic() > self._deadline:
                raise SafeladderError(
                    f"the evaluation did not finish in time: {self._open} calls open"
                )
            self.step()
            time.sleep(0.02)
        return self.answers

    @property
    def is_done(self) -> bool:
        """Whether every prompt is answered and judged, or given up."""
        return not (self._to_generate or self._to_score or self._open)

    @property
    def is_generated(self) -> bool:
        """Whether no engine is needed any more."""
        return not self._to_generate and all(
            item.completion is not None or item.tries >= MAX_TRIES for item in self._items
        )

    @property
    def is_stranded(self) -> bool:
        """Whether there are prompts left and nobody to ask, or it has taken too long."""
        has_nobody = bool(self._to_generate) and not self._serving and not self._loads
        return has_nobody or time.monotonic() > self._deadline

    @property
    def answers(self) -> list[HeldOutAnswer]:
        """What came out, in the order of the prompts."""
        return [
            HeldOutAnswer(prompt=i.prompt, completion=i.completion, verdicts=i.verdicts)
            for i in self._items
            if i.completion is not None
        ]

    def step(self) -> None:
        """Send what can be sent, take what has come; never waits."""
        for event in self._rollout.poll():
            self.on_rollout(event)
        for principle, fleet in self._verifiers.items():
            for event in fleet.poll():
                self.on_verifier(principle, event)
        self.send()

    def _prepare(self, engine: str) -> None:
        """Let an engine serve the version, if it does not; one that does says so at once."""
        if self._weights is None:
            self._serving.add(engine)
            return
        arguments = {"manifest": self._weights.manifest, "payload": self._weights.payload}
        self._rollout.call(
            engine, "load_weights", arguments, context=_Load(), deadline_s=LOAD_CALL_S
        )

    def send(self) -> None:
        """Ask as many engines and verifiers as there is room for."""
        while self._to_generate and self._open < self._config.evaluation.batch_size:
            engine = self._rollout.least_busy(self._serving)
            if engine is None:
                return
            index = self._to_generate.popleft()
            deadline_s = self._config.rollout.group_deadline_s
            if self._rollout.call(
                engine,
                "generate",
                {"lease": self._lease(index, deadline_s)},
                context=Asked(self._number, index),
                deadline_s=deadline_s + 30,
            ):
                self._open += 1
            else:
                self._to_generate.append(index)
        for _ in range(len(self._to_score)):
            index, principle = self._to_score.popleft()
            self._score(index, principle)

    def _lease(self, index: int, deadline_s: float) -> Lease:
        return Lease(
            key=GroupKey(self._epoch, index),
            attempt=self._items[index].tries,
            fence=self._fence,
            prompt=self._items[index].prompt,
            sampling=Sampling(
                num_samples=1,
                max_new_tokens=self._config.evaluation.max_new_tokens,
                temperature=0.0,
            ),
            deadline_s=deadline_s,
        )

    def _score(self, index: int, principle: str) -> None:
        fleet = self._verifiers[principle]
        actor = fleet.least_busy()
        item = self._items[index]
        arguments = {"payload": item.payload, "key": GroupKey(self._epoch, index)}
        timeout_s = self._config.principles[principle].timeout_s + 10
        if actor is not None and fleet.call(
            actor,
            "score",
            {**arguments, "attempt": item.tries},
            context=Asked(self._number, index),
            deadline_s=timeout_s,
        ):
            self._open += 1
        else:
            self._to_score.append((index, principle))

    def on_rollout(self, event: FleetEvent) -> None:
        """Something happened to an engine. Raises ``SafeladderError`` if none is left."""
        match event:
            case Exhausted():
                raise SafeladderError(f"no rollout actor is left: {event.reason}")
            case Joined():
                if self._loads:
                    self._prepare(event.actor)
            case Lost():
                self._serving.discard(event.actor)
                for index in self._close(event.contexts):
                    self._again(index)
            case Reply(context=_Load()):
                self._on_loaded(event)
            case Reply(context=Asked(number, index)) if number == self._number:
                self._open -= 1
                self._on_answer(index, event.value)
            case _:  # a late answer to the loop
                pass

    def _on_loaded(self, reply: Reply) -> None:
        assert self._weights is not None, "nothing was to be loaded"
        status = reply.value
        if isinstance(status, EngineStatus) and status.has_loaded(self._weights.manifest):
            self._serving.add(reply.actor)
        else:
            self._rollout.retire(reply.actor, f"weights not loaded: {status}")

    def _on_answer(self, index: int, value: Any) -> None:
        if not isinstance(value, GeneratedGroup):
            self._again(index)
            return
        try:
            group = fetch(value.payload, FETCH_DEADLINE_S)
        except KeyError:
            self._again(index)
            return
        (completion,) = group.completions
        if not (completion.token_versions == self._version).all():
            self._again(index)
            return
        item = self._items[index]
        item.completion, item.payload = completion, value.payload
        self._to_score.extend((index, principle) for principle in self._principles[index])

    def on_verifier(self, principle: str, event: FleetEvent) -> None:
        """Something happened to a verifier. Raises ``VerifierUnavailableError`` if none is left."""
        match event:
            case Exhausted():
                raise VerifierUnavailableError(f"no {principle} verifier is left: {event.reason}")
            case Lost():
                lost = self._close(event.contexts)
                self._to_score.extend((index, principle) for index in lost)
            case Reply(context=Asked(number, index)) if number == self._number:
                self._open -= 1
                self._on_scored(index, principle, event.value)
            case _:  # a start, or a late answer to the loop
                pass

    def _on_scored(self, index: int, principle: str, value: Any) -> None:
        item = self._items[index]
        if isinstance(value, ScoredGroup):
            item.verdicts[principle] = value.verdicts[0]
        elif item.tries < MAX_TRIES:
            item.tries += 1
            self._to_score.append((index, principle))

    def _close(self, contexts: Sequence[Any]) -> list[int]:
        """Prompts of our own calls among those that died with an actor."""
        ours = (context for context in contexts if isinstance(context, Asked))
        indexes = [context.index for context in ours if context.evaluation == self._number]
        self._open -= len(indexes)
        return indexes

    def _again(self, index: int) -> None:
        item = self._items[index]
        item.tries += 1
        if item.tries < MAX_TRIES:
            self._to_generate.append(index)
