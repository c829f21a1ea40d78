"""What a sampler asked and why, and what came of it: the records between ``curricula``, which
draws, and the ledger, which remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from safeladder.records import GroupKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One choice of a prompt. Recorded before anything is done with it; never changed."""

    row: int
    """Of the run's training prompts, in order of the sources."""
    prompt: str
    """Its id."""
    label: str
    """Its route."""
    bucket: str
    """Where it stood when it was drawn."""
    why: str
    """``pass``: its turn; ``focus``: what the schedule is about; ``rehearsal``: from elsewhere;
    ``together``: belongs to the draw before it."""
    predicted: float
    """Share of passes that was expected of the policy."""
    version: int
    """Steps whose outcomes the choice rests on."""


class Passes(NamedTuple):
    """How a group did, as the verdicts on its siblings say. Independent of the reward."""

    version: int
    """Of the oldest token: the policy that it tells about."""
    judged: int
    """Siblings with a valid verdict, at least one."""
    passed: int
    by_principle: Mapping[str, tuple[int, int]]
    """Principle → (judged, passed)."""
    by_type: tuple[tuple[int, int], ...] = ()
    """(judged, passed) of each constraint of the prompt, in its order; empty if not told."""


class Outcome(NamedTuple):
    """The end of a group that tells something about its prompt."""

    step: int
    """It counts in draws after this step: the one that trained the group, or was next when the
    group was dropped."""
    key: GroupKey
    row: int
    passes: Passes


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawHistory:
    """What a sampler must know of the surviving history to go on as if it had never stopped."""

    asked: Mapping[int, int] = field(default_factory=dict)
    """Row → draws of it."""
    reasons: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(label, why) → draws."""
    living: Mapping[GroupKey, Draw] = field(default_factory=dict)
    """Group without an end → its draw."""
    outcomes: tuple[Outcome, ...] = ()
    newest: tuple[int, ...] = ()
    """Rows of the newest draws: the last one that was chosen, and those that belong to it."""
    version: int = 0
    """Last surviving step."""
