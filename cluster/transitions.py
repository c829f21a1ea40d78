"""The life of a group as data: its states, which may follow which, and what is written down.

::

    PENDING → LEASED → GENERATED → SCORED → ADMITTED → TRAINED(step)
        ▲        │          │          │         │
        ├────────┴──────────┴──────────┴─────────┤   interrupted, actor or payload lost: attempt + 1
        │                                        └──▶ DROPPED(reason) from any state before TRAINED
        └── TRAINED(step later than the checkpoint), only in the ledger's resume transaction

Shared by the coordinator, which decides, and the ledger, which remembers. Knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from safeladder.draws import Draw, DrawHistory, Passes
from safeladder.records import GroupHeader, GroupKey


class GroupState(StrEnum):
    """Where a group stands; the last two are final."""

    PENDING = "pending"
    LEASED = "leased"
    GENERATED = "generated"
    SCORED = "scored"
    """All routed verdicts are final and the reference log-probs are there, if needed."""
    ADMITTED = "admitted"
    """In a ``Train`` order."""
    TRAINED = "trained"
    DROPPED = "dropped"


class DropReason(StrEnum):
    """Why a group is not trained."""

    STALE = "stale"
    """Its oldest token is older than ``schedule.max_staleness`` allows."""
    INVALID = "invalid"
    """Its verifiers brought no verdict, and the principle's policy gives the group up."""
    FILTERED = "filtered"
    """All siblings earned the same reward."""
    FAILED = "failed"
    """Attempts spent, or a prompt that cannot be generated from."""
    UNNEEDED = "unneeded"
    """The run ended early, and its last step was full."""


_LIVING = (
    GroupState.PENDING,
    GroupState.LEASED,
    GroupState.GENERATED,
    GroupState.SCORED,
    GroupState.ADMITTED,
)
EDGES = frozenset(
    [
        (None, GroupState.PENDING),
        *zip(_LIVING, (*_LIVING[1:], GroupState.TRAINED), strict=True),
        *((state, GroupState.PENDING) for state in _LIVING[1:]),
        *((state, GroupState.DROPPED) for state in _LIVING),
    ]
)
"""(source, target) of every transition that a coordinator may ask for. None: the key is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One compare-and-set: it holds only if the group is in ``source`` at ``attempt``."""

    key: GroupKey
    source: GroupState | None
    target: GroupState
    attempt: int
    """In force before the transition; going back to PENDING raises it by one."""
    engine: str | None = None
    header: GroupHeader | None = None
    """From GENERATED on, and kept by DROPPED, so that drops can be told by length."""
    step: int | None = None
    """From ADMITTED on."""
    reason: DropReason | None = None
    detail: str = ""
    """Why, in words: of DROPPED and of a return to PENDING."""
    draw: Draw | None = None
    """What a new key asks, if a sampler has chosen it."""
    passes: Passes | None = None
    """Of ADMITTED and DROPPED, for a sampler."""
    counts_after: int | None = None
    """The step after which ``passes`` counts in draws."""

    @property
    def next_attempt(self) -> int:
        """In force after the transition."""
        is_return = self.target is GroupState.PENDING and self.source is not None
        return self.attempt + 1 if is_return else self.attempt


class PendingGroup(NamedTuple):
    """A group that waits for a lease after a restart."""

    key: GroupKey
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSnapshot:
    """What a coordinator must know to go on."""

    pending: tuple[PendingGroup, ...] = ()
    """In order of key."""
    trained: int = 0
    """Groups TRAINED in the surviving history."""
    version: int = 0
    """Policy version to go on from: the last surviving step."""
    last_key: GroupKey | None = None
    """The newest key ever issued."""
    trained_by_staleness: Mapping[int, int] = field(default_factory=dict)
    """Staleness → groups TRAINED at it in the surviving history."""
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    constraints: str | None = None
    """State of the constraint weights after the last surviving step; None without any."""
    draws: DrawHistory = field(default_factory=DrawHistory)
    """Of a sampler."""
