"""The verdicts of one group: which samples are still to be judged, and what INVALID does to them.

Owns each principle's policy (``on_invalid``) and the step from verdicts to rewards. Pure; does not
know who judges, when, or where.

A verdict is final if it is OK or NOT_APPLICABLE. INVALID never becomes a number: it is asked for
again, leaves its sample out, drops the group, pauses training or ends the run, as configured. A
sample to which no principle applies has no reward and is left out like an invalid one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cluster.breaker import Breaker
from cluster.panel import Panel
from rewards.combine import combine_group
from safeladder.config import PrincipleConfig, RewardConfig
from safeladder.constraint_weights import weighed
from safeladder.records import GroupKey, InvalidCause, Verdict, VerdictStatus

MIN_SIBLINGS = 2
"""Fewer scored siblings leave nothing to compare: the group is dropped."""
SAME_REWARD = 1e-9
"""Rewards closer than this count as equal."""

Outcome = Literal["final", "again", "later", "drop", "fail"]
"""What a principle's new verdicts lead to: ``again`` asks at once, ``later`` after a pause."""


@dataclass(slots=True)
class PrincipleScores:
    """One principle's verdicts on the siblings of a group."""

    principle: str
    fleet: str
    """Who judges."""
    policy: PrincipleConfig
    breaker: Breaker
    """Shared by all groups that this verifier judges."""
    open: tuple[int, ...]
    """Indexes that are being judged; empty once every verdict is final or left out."""
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """Index → newest verdict."""
    left_out: set[int] = field(default_factory=set)
    call: int = 0
    """Calls made so far."""
    turn: int = 0
    """Of the breaker when the newest call went out."""
    unlogged: tuple[Verdict, ...] = ()
    """What the newest answer, or its lack, came to."""
    num_retries: int = 0
    num_lost: int = 0

    def take(self, key: GroupKey, verdicts: tuple[Verdict, ...]) -> Outcome:
        """Note the answer to a call for ``open`` and apply the policy to what is INVALID. In an
        outage no policy but ``fail`` costs a sample: the group waits until the verifier works, and
        is then asked for once more."""
        checked = self._checked(key, verdicts)
        answered = tuple(zip(self.open, checked, strict=True))
        invalid = [(i, v) for i, v in answered if _is_invalid(v)]
        self.breaker.note(v for i, v in answered if i not in self.verdicts)
        if not invalid:
            self.breaker.prove(self.turn)
        self.unlogged = tuple(checked)
        self.verdicts.update(answered)
        self.open = tuple(i for i, _ in invalid)
        if not invalid:
            return "final"
        if self.policy.on_invalid != "fail":
            if self.breaker.is_open:
                return "later"
            if self.breaker.turn != self.turn:  # an outage ended while the call was out
                return "again"
        return self._apply_policy([v for _, v in invalid])

    def _apply_policy(self, invalid: Sequence[Verdict]) -> Outcome:
        match self.policy.on_invalid:
            case "drop_sample":
                self.left_out.update(self.open)
                self.open = ()
                return "final"
            case "drop_group":
                return "drop"
            case "fail":
                return "fail"
            case "pause":
                return "later"
            case "retry":
                can_help = all(v.retryable for v in invalid)
                if not can_help or self.num_retries >= self.policy.max_retries:
                    return "drop"
                self.num_retries += 1
                return "again"

    def lose(self, key: GroupKey, max_lost: int) -> Outcome:
        """A call brought nothing. It is made again; after ``max_lost`` of them the samples count
        as INVALID(unavailable), since they may be what kills the verifier."""
        self.num_lost += 1
        if self.num_lost < max_lost:
            return "again"
        detail = f"{self.num_lost} calls to the verifier were lost"
        return self.take(
            key, tuple(self._invalid(key, i, InvalidCause.UNAVAILABLE, detail) for i in self.open)
        )

    def explain(self) -> str:
        """The first INVALID verdict, in words."""
        for index in self.open:
            verdict = self.verdicts.get(index)
            if verdict is not None and verdict.cause is not None:
                outage = f"; {self.breaker.explain()}" if self.breaker.is_open else ""
                return (
                    f"{self.principle}: INVALID({verdict.cause}) from {verdict.verifier} on "
                    f"{verdict.sample_id}: {verdict.evidence or 'no detail'}{outage}"
                )
        return f"{self.principle}: no verdict"

    @property
    def first_ok(self) -> int | None:
        """The first index with a score, or None."""
        scored = (i for i, v in self.verdicts.items() if v.status is VerdictStatus.OK)
        return min(scored, default=None)

    def _checked(self, key: GroupKey, verdicts: tuple[Verdict, ...]) -> list[Verdict]:
        """The answer if it fits the question, else INVALID(malformed) for every index."""
        group, principle = f"{key}/", self.principle
        expected = [(f"{group}{i}", principle) for i in self.open]
        if [(v.sample_id, v.principle) for v in verdicts] == expected:
            return list(verdicts)
        detail = f"{len(verdicts)} verdicts that do not fit the {len(expected)} samples asked for"
        return [self._invalid(key, i, InvalidCause.MALFORMED, detail) for i in self.open]

    def _invalid(self, key: GroupKey, index: int, cause: InvalidCause, detail: str) -> Verdict:
        return Verdict(
            sample_id=f"{key}/{index}",
            principle=self.principle,
            verifier=self.policy.verifier or "service",
            verifier_version="unknown",
            status=VerdictStatus.INVALID,
            evidence=detail,
            cause=cause,
        )


class GroupScores:
    """All principles of a group's route."""

    def __init__(
        self,
        size: int,
        route: str,
        panel: Panel,
        breakers: Mapping[str, Breaker],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """``factors``: principle → the constraint weight that is in force now, and for this group
        to the end."""
        self._size = size
        self.factors = dict(factors or {})
        self._weights = weighed(panel.config.routes[route], self.factors)
        self._rule = panel.config.reward
        self.generation = panel.generation
        """Of the panel that judges the whole group."""
        self.principles = {
            name: PrincipleScores(
                name,
                fleet := panel.fleets[name],
                panel.config.principles[name],
                breakers[fleet],
                tuple(range(size)),
            )
            for name in self._weights
        }

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to ask."""
        return not any(scores.open for scores in self.principles.values())

    @property
    def num_left(self) -> int:
        """Samples that have not been left out."""
        left_out = set[int]().union(*(s.left_out for s in self.principles.values()))
        return self._size - len(left_out)

    @property
    def verdicts(self) -> dict[str, list[Verdict]]:
        """Principle → its newest verdicts on the samples that have not been left out."""
        return {
            name: [v for index, v in scores.verdicts.items() if index not in scores.left_out]
            for name, scores in self.principles.items()
        }

    def rewards(self) -> tuple[float | None, ...]:
        """The combined reward of each sample; None where it is left out. Only when final."""
        siblings = [
            {name: s.verdicts[index] for name, s in self.principles.items()}
            for index in range(self._size)
        ]
        return group_rewards(self._weights, siblings, self._rule)

    def audit(self) -> str:
        """JSON list of the newest verdicts of all samples, by principle and index."""
        rows = [
            _audit_row(scores.verdicts[index])
            for scores in self.principles.values()
            for index in sorted(scores.verdicts)
        ]
        return msgspec.json.encode(rows).decode()


def group_rewards(
    weights: Mapping[str, float], siblings: Sequence[Mapping[str, Verdict]], rule: RewardConfig
) -> tuple[float | None, ...]:
    """The combined reward of each sibling, from its final verdicts by principle; None if one of
    them is INVALID or none gives reward."""
    judged = [verdicts if _is_judged(verdicts, rule) else None for verdicts in siblings]
    return combine_group(weights, judged, rule)


def _is_judged(verdicts: Mapping[str, Verdict], rule: RewardConfig) -> bool:
    applies = False
    for name, verdict in verdicts.items():
        if verdict.status is VerdictStatus.INVALID:
            return False
        applies |= verdict.status is VerdictStatus.OK and name not in rule.gates
    return applies


def has_variance(rewards: tuple[float | None, ...]) -> bool:
    """Whether any two siblings earned different rewards."""
    known = [reward for reward in rewards if reward is not None]
    return bool(known) and max(known) - min(known) > SAME_REWARD


def _is_invalid(verdict: Verdict) -> bool:
    return verdict.status is VerdictStatus.INVALID


def _audit_row(v: Verdict) -> dict[str, Any]:
    return {
        "sample_id": v.sample_id,
        "principle": v.principle,
        "verifier": v.verifier,
        "verifier_version": v.verifier_version,
        "status": v.status,
        "score": v.score,
        "label": v.label,
        "evidence": v.evidence,
        "cause": v.cause,
        "latency_ms": v.latency_ms,
        "disagreement": v.disagreement,
    }
