"""PBIF's released files (arXiv 2502.17204): rows to compositions.

``ranking`` means two things there, and this is the one place that knows:

========  ==========================  ==============================================================
round     order of the row's lists    ``ranking``
========  ==========================  ==============================================================
single    hard to easy                ``ranking[i]`` is the slot of constraint i in the prompt
multi     as presented                ``ranking[p]`` is the difficulty rank of the one at slot p
========  ==========================  ==============================================================

A permutation and its inverse have the same CDDI, so only rendered text tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from curricula.composition import Composition, Worded
from curricula.orders import inverse, require_permutation
from curricula.rows import read_rows
from safeladder.errors import DataError

Round = Literal["single", "multi"]
COLUMNS = ("instruction_id_list", "kwargs", "constraints", "ranking")


def read_pbif(path: Path, shape: Round) -> Iterator[tuple[str, Composition]]:
    """(``file:line``, composition) of each row. Raises ``DataError`` naming line and column."""
    for place, row in read_rows(path):
        yield place, _composition(place, row, shape)


def _composition(place: str, row: dict[str, Any], shape: Round) -> Composition:
    lists = {name: _list(place, row, name) for name in COLUMNS}
    ranking = tuple(lists["ranking"])
    try:
        require_permutation(ranking)
    except ValueError as error:
        raise DataError(f"{place}: column ranking: {error}") from None
    identity = tuple(range(len(ranking)))
    is_single = shape == "single"
    try:
        worded = tuple(
            Worded(name, text, _given(kwargs))
            for name, text, kwargs in zip(
                lists["instruction_id_list"], lists["constraints"], lists["kwargs"], strict=True
            )
        )
        composed = Composition(
            seed=_text(place, row),
            constraints=worded,
            presented_order=inverse(ranking) if is_single else identity,
            difficulty_rank=identity if is_single else ranking,
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"{place}: {error}") from None
    return _bare(place, composed) if is_single else composed


def _bare(place: str, composed: Composition) -> Composition:
    """Take the constraints off the prompt of a single-round row, which leaves its seed."""
    prompt, tail = composed.seed, composed.single_round()[len(composed.seed) :]
    if not prompt.endswith(tail):
        raise DataError(
            f"{place}: column prompt does not end with the constraints in the order that `ranking` "
            "gives; is it a multi-round file?"
        )
    return Composition(
        seed=prompt.removesuffix(tail),
        constraints=composed.constraints,
        presented_order=composed.presented_order,
        difficulty_rank=composed.difficulty_rank,
    )


def _list(place: str, row: dict[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: column {name}: must be a list that is not empty, not {value!r}")
    if len(value) != len(row["instruction_id_list"]):
        raise DataError(
            f"{place}: column {name}: {len(value)} entries, but instruction_id_list has "
            f"{len(row['instruction_id_list'])}"
        )
    return value


def _given(kwargs: Any) -> dict[str, Any]:
    if not isinstance(kwargs, dict):
        raise ValueError(f"column kwargs: must hold objects, not {kwargs!r}")
    return {name: value for name, value in kwargs.items() if value is not None}


def _text(place: str, row: dict[str, Any]) -> str:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(f"{place}: column prompt: must be text that is not empty")
    return prompt
