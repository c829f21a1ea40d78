"""Records of an order probe: what is asked, in which order, and what came of it.

A *trial* is one instruction with its constraints in one order (arXiv 2502.17204).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Round = Literal["single", "multi"]
Variant = Literal["level", "rotation", "difficulty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One instruction in one order."""

    id: str
    """Stable: the same options give the same ids."""
    round: Round
    variant: Variant
    """``rotation``: an extra order at the CDDI of a level, where difficulty and slot part.
    ``difficulty``: in any order, before ranks are known; ``ranks`` and CDDI mean nothing."""
    prompt: str
    """Id of the row; the same at every level, so that levels are compared prompt by prompt."""
    cluster: str
    """Rows of one seed instruction are no independent observations: intervals draw clusters."""
    ranks: tuple[int, ...]
    """[n] difficulty rank of the constraint at each slot; 0 is the hardest."""
    inversions: int
    """Pairs of slots whose constraints stand easy before hard."""
    cddi: float
    """1 - 2 * inversions / pairs: +1 is hard to easy, -1 easy to hard."""
    constraints: tuple[Mapping[str, Any], ...]
    """[n] in presented order: ``id`` (the type), ``kwargs``, ``text``."""
    turns: tuple[str, ...]
    """What the user says: one turn in single round, 1 + n in multi round."""

    @property
    def types(self) -> tuple[str, ...]:
        """[n] constraint types, in presented order."""
        return tuple(constraint["id"] for constraint in self.constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a trial."""

    trial: Trial
    passed: tuple[bool | None, ...]
    """[n] in presented order; None is INVALID: no answer, or no verdict on it."""

    @property
    def is_complete(self) -> bool:
        """Whether there is a verdict on every constraint."""
        return None not in self.passed
