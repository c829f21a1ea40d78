"""Several verifiers of one principle, asked together: the median of those that answer.

Owns the agreement. Fewer answers than ``need``, or scores further apart than ``max_spread``, are
INVALID(abstain): a quorum that does not agree has no opinion. How far apart the scores were is the
verdict's ``disagreement`` either way. It does not know what is judged; how long members are waited
for is the business of ``rewards.attendance``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rewards.attendance import Member, ask_members
from rewards.building import build_verifier, verifier_version
from rewards.judging import EVIDENCE_CHARS
from safeladder.config import PrincipleConfig
from safeladder.ports import Verifier
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

MEMBER_KEYS = {"verifier", "options"}
MEMBER_SHARE = 0.8
"""Of the principle's time: what members have by default. The rest is for the way to a service."""
GRACE_SHARE = 0.5
"""Of the members' time: how long the others are waited for by default. A call that shares a batch
at a service has half of its time for that."""


class Quorum:
    """A ``ports.Verifier`` made of others.

    ``members``: each a mapping with ``verifier`` and ``options``, as a principle has them.
    ``need``: how many must answer with a score (default: more than half); so many that find the
    principle not applicable, without a score against it, settle that. ``max_spread``: largest
    difference of two scores, in [0, 1].

    ``timeout_s``: time of each member (default: ``MEMBER_SHARE`` of the principle's); one that
    takes longer does not count. ``grace_s``: once ``need`` members have settled every sample, the
    others are waited for this long (default: ``GRACE_SHARE`` of ``timeout_s``). A member that
    exceeded it is still asked, but not waited for until it has once been in time again: a hanging
    member slows one call, not every call.
    """

    def __init__(
        self,
        *,
        principle: str,
        members: list[dict[str, Any]],
        need: int | None = None,
        max_spread: float = 1.0,
        timeout_s: float | None = None,
        grace_s: float | None = None,
        principle_timeout_s: float = 30.0,
    ) -> None:
        if len(members) < 2:
            raise ValueError(f"members: a quorum has at least two, got {len(members)}")
        need = len(members) // 2 + 1 if need is None else need
        if not 1 <= need <= len(members):
            raise ValueError(f"need: {need} of {len(members)} members cannot be")
        timeout_s = MEMBER_SHARE * principle_timeout_s if timeout_s is None else timeout_s
        grace_s = GRACE_SHARE * timeout_s if grace_s is None else grace_s
        if not (0 <= max_spread <= 1 and timeout_s > 0 and grace_s >= 0):
            raise ValueError(
                "max_spread must be in [0, 1], timeout_s above 0 and grace_s not below 0"
            )
        if timeout_s >= principle_timeout_s:
            raise ValueError(
                f"timeout_s: {timeout_s:g} s for a member must be below {principle_timeout_s:g} s, "
                f"principles.{principle}.timeout_s, or a slow member takes all the quorum's time"
            )
        for number, member in enumerate(members):
            if unknown := set(member) - MEMBER_KEYS:
                raise ValueError(f"members.{number}: unknown key {min(unknown)!r}")
        self._principle = principle
        self._members = [Member(_build(principle, member, timeout_s)) for member in members]
        self._need = need
        self._max_spread = max_spread
        self._timeout_s = timeout_s
        self._grace_s = grace_s

    @property
    def name(self) -> str:
        """The members' names."""
        return f"quorum of {', '.join(member.verifier.name for member in self._members)}"

    @property
    def version(self) -> str:
        """A hash of the members' versions and the rule."""
        rule = [self._need, self._max_spread, self._timeout_s, self._grace_s]
        parts = [[member.verifier.name, member.verifier.version] for member in self._members]
        return verifier_version("2", {"members": parts, "rule": rule})

    @property
    def is_dead(self) -> bool:
        """Whether too few members are left to agree."""
        living = [m for m in self._members if not getattr(m.verifier, "is_dead", False)]
        return len(living) < self._need

    async def start(self) -> None:
        """Start all members. Raises what the first one raises."""
        await asyncio.gather(*(member.verifier.start() for member in self._members))

    async def close(self) -> None:
        """Close all members."""
        for member in self._members:
            member.leave()
        await asyncio.gather(*(member.verifier.close() for member in self._members))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order."""
        said = await ask_members(
            self._members,
            requests,
            principle=self._principle,
            timeout_s=self._timeout_s,
            grace_s=self._grace_s,
            is_settled=self._is_settled,
        )
        return [
            self._agree(request, votes) for request, *votes in zip(requests, *said, strict=True)
        ]

    def _is_settled(self, votes: Sequence[Verdict]) -> bool:
        """Whether ``need`` members have scored a sample, or found nothing in it to score."""
        num_scores = sum(vote.score is not None for vote in votes)
        return num_scores >= self._need or self._is_not_applicable(votes)

    def _is_not_applicable(self, votes: Sequence[Verdict]) -> bool:
        statuses = [vote.status for vote in votes]
        num_absent = statuses.count(VerdictStatus.NOT_APPLICABLE)
        return num_absent >= self._need and VerdictStatus.OK not in statuses

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
        if self._is_not_applicable(votes):
            return Verdict(status=VerdictStatus.NOT_APPLICABLE, **fields)
        if len(scores) < self._need or spread > self._max_spread:
            return Verdict(
                status=VerdictStatus.INVALID,
                cause=InvalidCause.ABSTAIN,
                # Further scores bring those that are too far apart no closer together.
                retryable=len(scores) < self._need and any(vote.retryable for vote in votes),
                **fields,
            )
        return Verdict(
            status=VerdictStatus.OK, score=median(scores), label=_majority(votes), **fields
        )


def _build(principle: str, member: Mapping[str, Any], timeout_s: float) -> Verifier:
    config = PrincipleConfig.model_validate({**member, "timeout_s": timeout_s})
    return build_verifier(principle, config)


def _said(vote: Verdict) -> str:
    return f"{vote.score:g}" if vote.score is not None else str(vote.cause or vote.status)


def _majority(votes: Sequence[Verdict]) -> str | None:
    """The label that more than half of the answers carry, if there is one."""
    labels = [vote.label for vote in votes if vote.score is not None]
    common = max(set(labels), key=labels.count, default=None)
    return common if 2 * labels.count(common) > len(labels) else None
