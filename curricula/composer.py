"""Seed instructions to compositions: which constraints, in which orders.

======================  ============================================================================
orders                  the constraints of a seed are presented
======================  ============================================================================
``none``                as they were drawn
``fixed``               with the CDDI that is asked for, drawn uniformly among such orders
``uniform``             with a number of inversions drawn uniformly, then as above
``paired``              twice: as above, and reversed, so that the CDDI changes its sign
======================  ============================================================================

Everything is drawn from the seed number and the row's id: the same rows give the same compositions,
in whatever order or process they are composed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from curricula.composition import Composition, Worded, require_compatible
from curricula.constraint_sets import draw_constraints, word_constraint
from curricula.orders import Ranks, draw_order, inversions_for, num_pairs
from curricula.pbif import Round
from curricula.type_difficulty import TypeDifficulty
from rewards.constraints.vocabulary import HARD
from safeladder.errors import DataError

Orders = Literal["none", "fixed", "uniform", "paired"]
OURS = ("prompt", "id", "constraints")
"""Columns of a seed row that are used; all others are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeOptions:
    """What is drawn for every seed."""

    counts: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of constraints; one is drawn for each composition."""
    types: tuple[str, ...] = tuple(HARD)
    orders: Orders = "uniform"
    cddi: float = 1.0
    """Of ``fixed``."""
    shape: Round = "single"
    per_seed: int = 1
    seed: int = 0


def compose_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    options: ComposeOptions,
    difficulty: TypeDifficulty | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a prompt file, for rows ``{prompt, id?, constraints?}`` with their places.

    ``constraints``: a list of ``{"id", "kwargs", "text"?}`` that is taken instead of a drawn one.
    Without ``difficulty`` the ranks are drawn, and mean nothing. Raises ``DataError`` naming file,
    line and column.
    """
    places: dict[str, str] = {}
    for place, row in rows:
        seed = row.get("prompt")
        if not isinstance(seed, str) or not seed.strip():
            raise DataError(f"{place}: column prompt: must be text that is not empty")
        identity = str(row.get("id") or hashlib.sha256(seed.encode()).hexdigest()[:12])
        if identity in places:
            raise DataError(
                f"{place}: column id: {identity!r} is also the id of {places[identity]}; "
                "remove a row or give it an id"
            )
        places[identity] = place
        kept = {name: value for name, value in row.items() if name not in OURS}
        for copy in range(options.per_seed):
            rng = Random(f"{options.seed}/{identity}/{copy}")
            try:
                constraints = _asked_for(row) or draw_constraints(
                    seed, rng.choice(options.counts), rng, options.types
                )
            except ValueError as error:
                raise DataError(f"{place}: column constraints: {error}") from None
            made = _compositions(seed, constraints, rng, options, difficulty)
            for number, one in enumerate(made):
                yield kept | _row(f"{identity}-{copy}", number, len(made), one, options.shape)


def _asked_for(row: Mapping[str, Any]) -> tuple[Worded, ...]:
    """The constraints that a row asks for; none if it has no such column. Raises ``ValueError``."""
    listed = row.get("constraints")
    if listed is None:
        return ()
    if not isinstance(listed, list) or not listed:
        raise ValueError("must be a list of constraints that is not empty")
    worded = []
    for one in listed:
        if not isinstance(one, Mapping) or not {"id"} <= set(one) <= {"id", "kwargs", "text"}:
            raise ValueError(f"a constraint is {{id, kwargs, text}}, got {one!r}")
        kwargs = one.get("kwargs") or {}
        if one.get("text") is not None:
            worded.append(Worded(one["id"], one["text"], kwargs))
        else:
            worded.append(word_constraint(one["id"], kwargs))
    require_compatible([one.id for one in worded])
    return tuple(worded)


def _compositions(
    seed: str,
    constraints: tuple[Worded, ...],
    rng: Random,
    options: ComposeOptions,
    difficulty: TypeDifficulty | None,
) -> list[Composition]:
    ids = [one.id for one in constraints]
    difficulty_rank = (
        difficulty.ranks(ids) if difficulty else tuple(rng.sample(range(len(ids)), len(ids)))
    )
    version = difficulty.version if difficulty else None
    return [
        Composition.in_order(seed, constraints, ranks, difficulty_rank, version)
        for ranks in _orders(difficulty_rank, rng, options)
    ]


def _orders(difficulty_rank: Ranks, rng: Random, options: ComposeOptions) -> Sequence[Ranks]:
    count = len(difficulty_rank)
    if options.orders == "none":
        return (difficulty_rank,)
    if options.orders == "fixed":
        return (draw_order(count, inversions_for(options.cddi, count), rng),)
    ranks = draw_order(count, rng.randint(0, num_pairs(count)), rng)
    return (ranks, ranks[::-1]) if options.orders == "paired" else (ranks,)


def _row(name: str, number: int, num: int, one: Composition, shape: Round) -> dict[str, Any]:
    is_pair = num > 1
    turns = one.multi_round()
    return {
        "id": f"{name}-{'ab'[number]}" if is_pair else name,
        "prompt": one.single_round() if shape == "single" else one.seed,
        **({"turns": list(turns[1:])} if shape == "multi" else {}),
        **one.row(),
        **({"pair": name} if is_pair else {}),
    }
