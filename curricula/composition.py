"""An instruction made of a seed and constraints in one order: the record, and its exact wordings.

The order is told by two lists that cannot be mistaken for each other. ``presented_order[p]`` is the
constraint at slot p, as an index into ``constraints``; ``difficulty_rank[i]`` is the rank of
constraint i, 0 the hardest. A rendered prompt is never taken apart again: texts of constraints hold
full stops and line breaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curricula.orders import Ranks, cddi, inverse, require_permutation
from rewards.constraints.rows import stated
from rewards.constraints.vocabulary import HARD, SOFT, conflicting_pair


@dataclass(frozen=True, slots=True)
class Worded:
    """One constraint with its words. Raises ``ValueError`` for a type that is not known, for a hard
    type without its parameters, and for a blank text."""

    id: str
    text: str
    """Without the full stop that ends it in the instruction."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Empty for soft types."""

    def __post_init__(self) -> None:
        if self.id in SOFT:
            if self.kwargs:
                raise ValueError(f"{self.id}: a soft constraint has no kwargs, only its text")
        else:
            stated([{"id": self.id, "kwargs": self.kwargs}], HARD)
        if not self.text.strip():
            raise ValueError(f"{self.id}: the constraint has no text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One instruction. Raises ``ValueError`` for orders that are no permutations of the constraints
    and for constraints that exclude each other."""

    seed: str
    constraints: tuple[Worded, ...]
    """[n]"""
    presented_order: tuple[int, ...]
    """[n] slot → index of its constraint."""
    difficulty_rank: Ranks
    """[n] index of a constraint → its rank, 0 the hardest."""
    difficulty_version: int | None = None
    """Policy version whose pass rates gave the ranks; None if they come from elsewhere."""

    def __post_init__(self) -> None:
        for name in ("presented_order", "difficulty_rank"):
            numbers = getattr(self, name)
            if len(numbers) != len(self.constraints):
                raise ValueError(
                    f"{name}: {len(numbers)} numbers for {len(self.constraints)} constraints"
                )
            try:
                require_permutation(numbers)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        require_compatible([one.id for one in self.constraints])

    @classmethod
    def in_order(
        cls,
        seed: str,
        constraints: Sequence[Worded],
        ranks: Ranks,
        difficulty_rank: Ranks,
        difficulty_version: int | None = None,
    ) -> Composition:
        """Present the constraints so that slot p has the one of rank ``ranks[p]``."""
        by_rank = inverse(difficulty_rank)
        return cls(
            seed=seed,
            constraints=tuple(constraints),
            presented_order=tuple(by_rank[rank] for rank in ranks),
            difficulty_rank=difficulty_rank,
            difficulty_version=difficulty_version,
        )

    @property
    def presented(self) -> tuple[Worded, ...]:
        """[n] the constraints, slot by slot."""
        return tuple(self.constraints[index] for index in self.presented_order)

    @property
    def ranks(self) -> Ranks:
        """[n] difficulty rank at each slot."""
        return tuple(self.difficulty_rank[index] for index in self.presented_order)

    @property
    def cddi(self) -> float:
        """+1 hard to easy, -1 easy to hard."""
        return cddi(self.ranks)

    def single_round(self) -> str:
        """All in one turn."""
        return single_round(self.seed, [one.text for one in self.presented])

    def multi_round(self) -> tuple[str, ...]:
        """[1 + n] the user's turns: the seed, then one constraint after the other. An answer comes
        after each; only the last one is scored, against all constraints."""
        return (self.seed, *(f"{one.text}." for one in self.presented))

    def row(self) -> dict[str, Any]:
        """The columns of a data file; ``curricula.prompts`` and ``rewards.instructions`` read it.
        Hard constraints stand in IFEval's columns, in the order of ``constraints``."""
        return {
            "instruction_id_list": [one.id for one in self.constraints],
            "kwargs": [dict(one.kwargs) for one in self.constraints],
            "constraints": [one.text for one in self.constraints],
            "presented_order": list(self.presented_order),
            "difficulty_rank": list(self.difficulty_rank),
            "difficulty_version": self.difficulty_version,
            "cddi": self.cddi,
            "num_constraints": len(self.constraints),
            "seed_instruction": self.seed,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Composition:
        """The composition that ``row`` told, for example out of a prompt's ``meta``. Raises
        ``ValueError``."""
        try:
            worded = zip(row["instruction_id_list"], row["constraints"], row["kwargs"], strict=True)
            return cls(
                seed=row["seed_instruction"],
                constraints=tuple(Worded(*one) for one in worded),
                presented_order=tuple(row["presented_order"]),
                difficulty_rank=tuple(row["difficulty_rank"]),
                difficulty_version=row.get("difficulty_version"),
            )
        except KeyError as error:
            raise ValueError(f"column {error.args[0]} is missing") from None


def single_round(seed: str, texts: Sequence[str]) -> str:
    """A seed and its constraints, in the order given, as one turn.

    >>> single_round("Tell a joke.", ["Use no comma", "Be brief"])
    'Tell a joke. Use no comma. Be brief.'
    """
    return f"{seed} {'. '.join(texts)}." if texts else seed


def require_compatible(ids: Sequence[str]) -> None:
    """Raise ``ValueError`` that names two constraints which exclude each other."""
    pair = conflicting_pair(ids)
    if pair is not None:
        twice = "stands twice" if pair[0] == pair[1] else f"excludes {pair[1]}"
        raise ValueError(f"{pair[0]} {twice}; remove one of the two")
