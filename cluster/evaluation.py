"""Greedy answers of one policy version to the held-out prompts, judged by the run's own verifiers.

Owns: which engines may answer, sending every prompt to one of them, asking again when it dies, and
scoring the answers. An engine gets a prompt only after it has echoed the version's digest in this
evaluation, since a replacement starts with the base model; an answer with a token of another
version is not taken. What the answers mean is ``evals.held_out``'s business.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutAnswer:
    """One greedy answer and what the run's verifiers said about it."""

    prompt: Prompt
    completion: Completion
    verdicts: Mapping[str, Verdict]
    """Principle → verdict, INVALID ones included."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Context of an evaluation's own calls; the fleets may still answer calls of the loop."""

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
    """One pass over the held-out prompts. ``step`` is called until ``is_done``. Only the version
    in ``weights`` may answer; None means the base model that every engine starts with."""

    def __init__(
        self,
        config: Config,
        prompts: Sequence[Prompt],
        rollout: RolloutFleets,
        verifiers: Mapping[str, Fleet],
        fence: int,
        weights: PublishedWeights | None,
    ) -> None:
        self._config = config
        self._fence = fence
        self._weights = weights
        self._version = weights.manifest.version if weights else 0
        self._serving: set[str] = set()
        """Engines that serve the version that must answer."""
        self._items = [_Item(prompt) for prompt in prompts]
        self._rollout = rollout
        self._verifiers = verifiers
        self._to_generate = deque(range(len(self._items)))
        self._to_score: deque[tuple[int, str]] = deque()
        self._open = 0
        """Prompts and answers that are out, loads not counted."""
        for engine in rollout.ready:
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
            self._on_rollout(event)
        for principle, fleet in self._verifiers.items():
            for event in fleet.poll():
                self._on_verifier(principle, event)
        self._send()

    def _prepare(self, engine: str) -> None:
        """Let an engine serve the version, if it does not; one that does says so at once."""
        if self._weights is None:
            self._serving.add(engine)
            return
        arguments = {"manifest": self._weights.manifest, "payload": self._weights.payload}
        self._rollout.call(
            engine, "load_weights", arguments, context=_Load(), deadline_s=LOAD_CALL_S
        )

    def _send(self) -> None:
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
                context=_Asked(index),
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
            key=GroupKey(EVALUATION_EPOCH, index),
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
        arguments = {"payload": item.payload, "key": GroupKey(EVALUATION_EPOCH, index)}
        timeout_s = self._config.principles[principle].timeout_s + 10
        if actor is not None and fleet.call(
            actor,
            "score",
            {**arguments, "attempt": item.tries},
            context=_Asked(index),
            deadline_s=timeout_s,
        ):
            self._open += 1
        else:
            self._to_score.append((index, principle))

    def _on_rollout(self, event: FleetEvent) -> None:
        match event:
            case Exhausted():
                raise SafeladderError(f"no rollout actor is left: {event.reason}")
            case Joined():
                self._prepare(event.actor)
            case Lost():
                self._serving.discard(event.actor)
                for index in self._close(event.contexts):
                    self._again(index)
            case Reply(context=_Load()):
                self._on_loaded(event)
            case Reply(context=_Asked(index)):
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
        route = self._config.routes[item.prompt.route]
        self._to_score.extend((index, principle) for principle in route)

    def _on_verifier(self, principle: str, event: FleetEvent) -> None:
        match event:
            case Exhausted():
                raise VerifierUnavailableError(f"no {principle} verifier is left: {event.reason}")
            case Lost():
                lost = self._close(event.contexts)
                self._to_score.extend((index, principle) for index in lost)
            case Reply(context=_Asked(index)):
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
        indexes = [context.index for context in contexts if isinstance(context, _Asked)]
        self._open -= len(indexes)
        return indexes

    def _again(self, index: int) -> None:
        item = self._items[index]
        item.tries += 1
        if item.tries < MAX_TRIES:
            self._to_generate.append(index)
