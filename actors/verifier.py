"""The verifier role: takes a group from the payload store, asks its verifier, returns verdicts.

Owns the way from completions to score requests, the deadline of a call and the role's counters.
Knows neither where the verifier runs nor what a verdict leads to.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.deadline import score_with_deadline
from safeladder.conversation import CONVERSATION
from safeladder.ports import PayloadStore, Verifier
from safeladder.records import (
    Completion,
    GroupKey,
    InvalidCause,
    Prompt,
    RolloutGroup,
    ScoreRequest,
    Verdict,
    VerdictStatus,
)
from vision.reading import read_image, without_marks

LATENCY_WINDOW = 512
"""Calls over which latency is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """Verdicts of one principle over (some) completions of a group."""

    actor: str
    key: GroupKey
    attempt: int
    principle: str
    verdicts: tuple[Verdict, ...]
    """In order of ``indexes``, or of all completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePayloadLost:
    """The group's payload is gone: it must be generated again."""

    actor: str
    key: GroupKey
    attempt: int
    principle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierStatus:
    """What a verifier actor has done since it started."""

    actor: str
    principle: str
    verifier: str
    verifier_version: str
    calls: int
    payloads_lost: int
    verdicts: Mapping[str, int]
    """Number of verdicts by status (``ok``, ``not_applicable``, ``invalid``)."""
    invalid: Mapping[str, int]
    """Number of INVALID verdicts by cause."""
    latency_p50_ms: float | None
    """Of the last ``LATENCY_WINDOW`` calls; None before the first."""
    latency_p99_ms: float | None
    is_dead: bool = False
    """Whether its verifier hangs for good; then the actor must be replaced."""
    failure: str | None = None
    """Why it is dead."""


class VerifierActor:
    """One verifier of one principle. Calls may overlap; the verifier decides what it shares."""

    def __init__(
        self,
        name: str,
        principle: str,
        verifier: Verifier,
        store: PayloadStore,
        timeout_s: float,
    ) -> None:
        self._name = name
        self._principle = principle
        self._verifier = verifier
        self._store = store
        self._timeout_s = timeout_s
        self._payloads_lost = 0
        self._calls = 0
        self._verdicts: Counter[str] = Counter()
        self._invalid: Counter[str] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=LATENCY_WINDOW)

    async def start(self) -> VerifierStatus:
        """Get the verifier ready. Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        await self._verifier.start()
        return await self.status()

    async def score(
        self, payload: Any, key: GroupKey, attempt: int, indexes: Sequence[int] | None = None
    ) -> ScoredGroup | ScorePayloadLost:
        """Verdicts of the completions at ``indexes`` (None: all) of the group behind ``payload``.

        Never raises for a fault of the data or the verifier: those are INVALID verdicts.
        """
        try:
            group: RolloutGroup = await self._store.get(payload)
        except KeyError:
            self._payloads_lost += 1
            return ScorePayloadLost(
                actor=self._name, key=key, attempt=attempt, principle=self._principle
            )
        started_s = time.monotonic()
        verdicts = await self._judge(group, key, attempt, _choose(group, indexes))
        self._count(verdicts, 1000 * (time.monotonic() - started_s))
        return ScoredGroup(
            actor=self._name,
            key=key,
            attempt=attempt,
            principle=self._principle,
            verdicts=tuple(verdicts),
        )

    async def probe(self, requests: Sequence[ScoreRequest]) -> tuple[Verdict, ...]:
        """Verdicts on canaries: the way of every sample, but for the payload store."""
        return tuple(
            await score_with_deadline(
                self._verifier, requests, self._timeout_s, principle=self._principle
            )
        )

    async def status(self) -> VerifierStatus:
        """Counters since the start."""
        is_dead = bool(getattr(self._verifier, "is_dead", False))
        return VerifierStatus(
            actor=self._name,
            principle=self._principle,
            verifier=self._verifier.name,
            verifier_version=self._verifier.version,
            calls=self._calls,
            payloads_lost=self._payloads_lost,
            verdicts=dict(self._verdicts),
            invalid=dict(self._invalid),
            latency_p50_ms=_percentile(self._latencies_ms, 0.5),
            latency_p99_ms=_percentile(self._latencies_ms, 0.99),
            is_dead=is_dead,
            failure=f"{self._verifier.name} hangs in all its threads" if is_dead else None,
        )

    async def close(self) -> None:
        """Free what the verifier holds."""
        await self._verifier.close()

    async def _judge(
        self, group: RolloutGroup, key: GroupKey, attempt: int, chosen: Sequence[Completion]
    ) -> list[Verdict]:
        try:
            images = await _files(group)
        except ValueError as error:
            evidence = f"an image cannot be read: {error}"
            return [self._unreadable(f"{key}/{one.index}", evidence) for one in chosen]
        requests = [_request(group, key, attempt, one, images) for one in chosen]
        return await score_with_deadline(
            self._verifier, requests, self._timeout_s, principle=self._principle
        )

    def _unreadable(self, sample_id: str, evidence: str) -> Verdict:
        return Verdict(
            sample_id=sample_id,
            principle=self._principle,
            verifier=self._verifier.name,
            verifier_version=self._verifier.version,
            status=VerdictStatus.INVALID,
            cause=InvalidCause.ERROR,
            evidence=evidence,
        )

    def _count(self, verdicts: Sequence[Verdict], latency_ms: float) -> None:
        self._calls += 1
        self._latencies_ms.append(latency_ms)
        self._verdicts.update(verdict.status.value for verdict in verdicts)
        self._invalid.update(v.cause.value for v in verdicts if v.cause is not None)


def _choose(group: RolloutGroup, indexes: Sequence[int] | None) -> Sequence[Completion]:
    if indexes is None:
        return group.completions
    by_index = {completion.index: completion for completion in group.completions}
    return [by_index[index] for index in indexes]


async def _files(group: RolloutGroup) -> tuple[bytes, ...]:
    """The image files that the policy saw, the same objects for all siblings."""
    if group.images:
        return tuple(image.file for image in group.images)
    return tuple([await asyncio.to_thread(read_image, path) for path in group.prompt.images])


def _request(
    group: RolloutGroup,
    key: GroupKey,
    attempt: int,
    completion: Completion,
    images: tuple[bytes, ...],
) -> ScoreRequest:
    prompt = group.prompt
    return ScoreRequest(
        sample_id=f"{key}/{completion.index}",
        attempt=attempt,
        messages=without_marks(prompt),
        response=completion.text,
        finish_reason=completion.finish_reason,
        num_tokens=completion.num_sampled,
        route=prompt.route,
        reference=prompt.reference,
        lang=prompt.lang,
        images=images,
        meta=_meta(prompt, completion),
    )


def _meta(prompt: Prompt, completion: Completion) -> Mapping[str, Any]:
    """The columns of the row, and beside them the conversation, if it was one."""
    if (talk := completion.conversation) is None:
        return prompt.meta
    turns = [[turn.role, turn.content] for turn in talk.turns]
    return {**prompt.meta, CONVERSATION: {"turns": turns, "facts": dict(talk.facts)}}


def _percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that is not below ``share`` of all values; None of none.

    >>> _percentile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
