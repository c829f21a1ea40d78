"""``safeladder ledger``: what became of every group of a run, and whether the books are sound.

Read from one moment of the ledger and from the batches; a run may be going on. Drop rates are
shares of the groups that have ended. They are told by reason and by length, so that a bias shows:
a decile of length is one of the sampled tokens of all ended groups, trained or dropped; equal
lengths are in one decile. Groups dropped before they were generated have no length and stand apart.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.batch_audit import BatchAudit, audit_batches
from cluster.ledger_audit import violations
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory

DECILES = 10

_ENDED = """
SELECT state, reason, num_tokens FROM groups WHERE state IN ('trained', 'dropped')
"""
_STARTS = """
SELECT fence, checkpoint_step, unix_s, (
    SELECT count(*) FROM history h WHERE h.fence = s.fence AND target = 'pending'
    AND detail = 'restart'
), (SELECT count(*) FROM history h WHERE h.fence = s.fence) FROM starts s ORDER BY fence
"""
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Groups that have ended, and how."""

    trained: int
    dropped: Counts
    """By reason."""

    @property
    def num_groups(self) -> int:
        return self.trained + sum(self.dropped.values())

    @property
    def drop_rate(self) -> float:
        """Share of the ended groups that was not trained; 0 if none has ended."""
        return sum(self.dropped.values()) / max(self.num_groups, 1)

    def rate(self, reason: str) -> float:
        """Share of the ended groups that was dropped for a reason."""
        return self.dropped.get(reason, 0) / max(self.num_groups, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decile:
    """One tenth of the ended groups that were generated, by their length."""

    number: int
    """1 has the shortest groups."""
    min_tokens: int
    max_tokens: int
    ended: Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A driver that took the run over."""

    fence: int
    checkpoint_step: int
    """It went on from here."""
    unix_s: float
    taken_back: int
    """Groups that the driver before it had on their way, or trained after the checkpoint."""
    writes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """The accounting of one run at one moment."""

    issued: int
    states: Counts
    ended: Ended
    never_generated: Ended
    """Dropped before any of their tokens was sampled in the last attempt."""
    deciles: Sequence[Decile]
    attempts: Mapping[int, int]
    """Attempt in force → groups."""
    staleness: Mapping[int, int]
    """Versions between the oldest token and the learner → trained groups."""
    starts: Sequence[Start]
    batches: BatchAudit
    violations: Sequence[str]
    """Of the ledger and of the batches; none if the books are sound."""

    def as_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "issued": self.issued,
            "states": dict(self.states),
            "ended": _ended_row(self.ended),
            "never_generated": _ended_row(self.never_generated),
            "deciles": [
                {
                    "decile": one.number,
                    "min_tokens": one.min_tokens,
                    "max_tokens": one.max_tokens,
                    **_ended_row(one.ended),
                }
                for one in self.deciles
            ],
            "attempts": {str(k): n for k, n in self.attempts.items()},
            "staleness": {str(k): n for k, n in self.staleness.items()},
            "starts": [{name: getattr(one, name) for name in one.__slots__} for one in self.starts],
            "batches": {
                "compared": self.batches.num_compared,
                "missing": self.batches.missing,
            },
            "violations": list(self.violations),
            "is_sound": not self.violations,
        }


def read_report(run: RunDirectory) -> LedgerReport:
    """Read, count, audit. Raises ``ConfigError`` without a ledger that can be read."""
    config = run.config()
    schedule = config.schedule
    with reading(run) as ledger:
        states = dict(ledger.execute("SELECT state, count(*) FROM groups GROUP BY 1"))
        ends = ledger.execute(_ENDED).fetchall()
        attempts = _histogram(ledger, "SELECT attempt, count(*) FROM groups GROUP BY 1")
        staleness = _histogram(
            ledger,
            "SELECT step - 1 - min_version, count(*) FROM groups WHERE state = 'trained' "
            "AND min_version NOTNULL GROUP BY 1",
        )
        starts = [
            Start(fence=f, checkpoint_step=step, unix_s=at, taken_back=back, writes=writes)
            for f, step, at, back, writes in ledger.execute(_STARTS)
        ]
        trained = _trained_groups(ledger)
        broken = violations(ledger, schedule.groups_per_step, schedule.max_staleness)
    batches = audit_batches(
        run.batches,
        trained,
        group_size=config.rollout.group_size,
        max_staleness=schedule.max_staleness,
    )
    return LedgerReport(
        issued=sum(states.values()),
        states=states,
        ended=_ended(ends),
        never_generated=_ended([end for end in ends if end[2] is None]),
        deciles=_deciles([end for end in ends if end[2] is not None]),
        attempts=attempts,
        staleness=staleness,
        starts=starts,
        batches=batches,
        violations=[*broken, *batches.violations],
    )


def _deciles(ends: Sequence[tuple[str, str | None, int]]) -> list[Decile]:
    """The tenths that hold a group. A group's tenth is the share of groups shorter than it."""
    lengths = sorted(end[2] for end in ends)
    tenths: dict[int, list[tuple[str, str | None, int]]] = {}
    for end in ends:
        tenth = bisect_left(lengths, end[2]) * DECILES // len(lengths)
        tenths.setdefault(tenth + 1, []).append(end)
    return [
        Decile(
            number=number,
            min_tokens=min(end[2] for end in tenth),
            max_tokens=max(end[2] for end in tenth),
            ended=_ended(tenth),
        )
        for number, tenth in sorted(tenths.items())
    ]


def _ended(ends: Sequence[tuple[str, str | None, int | None]]) -> Ended:
    dropped = Counter(str(reason) for state, reason, _ in ends if state == "dropped")
    return Ended(trained=len(ends) - dropped.total(), dropped=dict(sorted(dropped.items())))


def _ended_row(ended: Ended) -> dict[str, Any]:
    return {
        "groups": ended.num_groups,
        "trained": ended.trained,
        "dropped": dict(ended.dropped),
        "drop_rate": ended.drop_rate,
        "drop_rate_by_reason": {reason: ended.rate(reason) for reason in ended.dropped},
    }


def _histogram(ledger: sqlite3.Connection, query: str) -> dict[int, int]:
    return {int(value): count for value, count in ledger.execute(f"{query} ORDER BY 1")}


def _trained_groups(ledger: sqlite3.Connection) -> dict[int, set[str]]:
    """Step → groups, as ``epoch/ordinal``."""
    steps: dict[int, set[str]] = {}
    query = (
        "SELECT step, epoch || '/' || ordinal FROM groups WHERE step NOTNULL AND state = 'trained'"
    )
    for step, group in ledger.execute(query):
        steps.setdefault(step, set()).add(group)
    return steps
