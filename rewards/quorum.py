"""Several verifiers of one principle, asked together: the median of those that answer.

Owns the agreement. Fewer answers than ``need``, or scores further apart than ``max_spread``, are
INVALID(abstain): a quorum that does not agree has no opinion. How far apart the scores were is the
verdict's ``disagreement`` either way. It does not know what is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rewards.building import build_verifier, verifier_version
from rewards.deadline import score_with_deadline
from rewards.judging import EVIDENCE_CHARS
from safeladder.config import PrincipleConfig
from safeladder.ports import Verifier
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

MEMBER_KEYS = {"verifier", "options"}


class Quorum:
    """A ``ports.Verifier`` made of others.

    ``members``: each a mapping with ``verifier`` and ``options``, as a principle has them.
    ``need``: how many must answer with a score (default: more than half). ``max_spread``: largest
    difference of two scores, in [0, 1]. ``timeout_s``: time of each member; one that takes longer
    does not count, and holds nobody up.
    """

    def __init__(
        self,
        *,
        principle: str,
        members: list[dict[str, Any]],
        need: int | None = None,
        max_spread: float = 1.0,
        timeout_s: float = 20.0,
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"members: a quorum has at least two, got {len(members)}")
        need = len(members) // 2 + 1 if need is None else need
        if not 1 <= need <= len(members):
            raise ValueError(f"need: {need} of {len(members)} members cannot be")
        if not (0 <= max_spread <= 1 and timeout_s > 0):
            raise ValueError("max_spread must be in [0, 1] and timeout_s above 0")
        for number, member in enumerate(members):
            if unknown := set(member) - MEMBER_KEYS:
                raise ValueError(f"members.{number}: unknown key {min(unknown)!r}")
        self._principle = principle
        self._members = [_build(principle, member) for member in members]
        self._need = need
        self._max_spread = max_spread
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        """The members' names."""
        return f"quorum of {', '.join(member.name for member in self._members)}"

    @property
    def version(self) -> str:
        """A hash of the members' versions and the rule."""
        rule = [self._need, self._max_spread, self._timeout_s]
        parts = [[member.name, member.version] for member in self._members]
        return verifier_version("1", {"members": parts, "rule": rule})

    @property
    def is_dead(self) -> bool:
        """Whether too few members are left to agree."""
        living = [one for one in self._members if not getattr(one, "is_dead", False)]
        return len(living) < self._need

    async def start(self) -> None:
        """Start all members. Raises what the first one raises."""
        await asyncio.gather(*(member.start() for member in self._members))

    async def close(self) -> None:
        """Close all members."""
        await asyncio.gather(*(member.close() for member in self._members))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order."""
        said = await asyncio.gather(
            *(
                score_with_deadline(member, requests, self._timeout_s, principle=self._principle)
                for member in self._members
            )
        )
        return [
            self._agree(request, votes) for request, *votes in zip(requests, *said, strict=True)
        ]

    def _agree(self, request: ScoreRequest, votes: Sequence[Verdict]) -> Verdict:
        scores = [vote.score for vote in votes if vote.score is not None]
        spread = max(scores) - min(scores) if scores else 0.0
        evidence = f"{len(scores)} of {len(votes)}, spread {spread:.2f}: " + ", ".join(
            f"{vote.verifier.rpartition(':')[2]} {_said(vote)}" for vote in votes
        )
        fields: dict[str, Any] = {
            "sample_id": request.sample_id,
            "principle": self._principle,
            "verifier": self.name,
            "verifier_version": self.version,
            "evidence": evidence[:EVIDENCE_CHARS],
            "latency_ms": max(vote.latency_ms for vote in votes),
            "disagreement": spread if len(scores) > 1 else None,
        }
        if all(vote.status is VerdictStatus.NOT_APPLICABLE for vote in votes):
            return Verdict(status=VerdictStatus.NOT_APPLICABLE, **fields)
        if len(scores) < self._need or spread > self._max_spread:
            return Verdict(
                status=VerdictStatus.INVALID,
                cause=InvalidCause.ABSTAIN,
                retryable=any(vote.retryable for vote in votes),
                **fields,
            )
        return Verdict(
            status=VerdictStatus.OK, score=median(scores), label=_majority(votes), **fields
        )


def _build(principle: str, member: Mapping[str, Any]) -> Verifier:
    return build_verifier(principle, PrincipleConfig.model_validate(dict(member)))


def _said(vote: Verdict) -> str:
    return f"{vote.score:g}" if vote.score is not None else str(vote.cause or vote.status)


def _majority(votes: Sequence[Verdict]) -> str | None:
    """The label that more than half of the answers carry, if there is one."""
    labels = [vote.label for vote in votes if vote.score is not None]
    common = max(set(labels), key=labels.count, default=None)
    return common if 2 * labels.count(common) > len(labels) else None
