"""Sets of constraints drawn for a seed instruction: which types meet, with which values and words.

PBIF's released sets have one filling each and ten patterns of types in all, so that effects of
type, value and company cannot be told apart; here all three vary from row to row. No two of a set
exclude each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from curricula.composition import Worded
from curricula.constraint_values import VALUES
from rewards.constraints.port import HardConstraint
from rewards.constraints.rows import stated
from rewards.constraints.templates import TEMPLATES, word
from rewards.constraints.vocabulary import CONFLICTS, HARD

TRIES = 200
"""Random orders of the types that are tried for a set; each takes all it can from the front."""


def draw_constraints(
    seed: str, count: int, rng: Random, types: Sequence[str] = tuple(HARD)
) -> tuple[Worded, ...]:
    """[count] constraints of different types, in random order. Raises ``ValueError`` if the types
    have no set of so many without a conflict (or none was found)."""
    return tuple(draw_constraint(one, seed, rng) for one in draw_types(count, rng, types))


def draw_types(count: int, rng: Random, types: Sequence[str]) -> list[str]:
    """[count] different types, hard or soft, in random order. Raises ``ValueError`` as above."""
    for _ in range(TRIES):
        chosen: list[str] = []
        for name in rng.sample(types, len(types)):
            if not any(other in CONFLICTS[name] for other in chosen):
                chosen.append(name)
            if len(chosen) == count:
                return chosen
    raise ValueError(
        f"no set of {count} constraints without a conflict was found among {len(types)} types"
    )


def draw_constraint(name: str, seed: str, rng: Random) -> Worded:
    """A hard constraint with drawn values and words."""
    kwargs = VALUES[name](rng, seed)
    return word_constraint(name, kwargs, rng.randrange(len(TEMPLATES[name])))


def word_constraint(name: str, kwargs: Mapping[str, Any], choice: int = 0) -> Worded:
    """A hard constraint in the words of one of its templates. Raises ``ValueError``."""
    (one,) = stated([{"id": name, "kwargs": kwargs}])
    assert isinstance(one.constraint, HardConstraint), "the vocabulary holds nothing else"
    return Worded(name, word(name, one.constraint, choice), kwargs)
