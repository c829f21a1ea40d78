"""Constraints of one row of data: three shapes in, one list of named constraints out.

* ``{"instruction_id_list": [...], "kwargs": [...]}`` in ``meta``, as IFEval and PBIF have it, with
  ``weights`` beside it or not
* a list of ``{"id", "kwargs", "weight"}`` in a column of ``meta``
* the same list in ``reference``, as JSON

Parameters that are null count as absent: tables of IFEval have a column for every one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rewards.constraints.port import Constraint, HardConstraint, Reading
from rewards.constraints.vocabulary import HARD
from safeladder.config_section import Weight

MAX_CONSTRAINTS = 64
Known = Mapping[str, Callable[..., Constraint]]
_WEIGHT = TypeAdapter(Weight)


@dataclass(frozen=True, slots=True)
class Stated:
    """One constraint of a row."""

    id: str
    constraint: Constraint
    weight: float = 1.0

    def is_met(self, answer: str, reading: Reading) -> bool:
        """Its rule on an answer that is not blank. Constraints from outside have one reading."""
        if isinstance(self.constraint, HardConstraint):
            return self.constraint.is_met(answer, reading)
        return self.constraint.is_met(answer)


def listed(meta: Mapping[str, Any], reference: str | None, column: str) -> list[Any]:
    """The entries of a row as ``{"id", "kwargs", "weight"}``. Raises ``ValueError``."""
    if "instruction_id_list" in meta:
        return _paired(meta)
    entries: Any = meta.get(column, reference)
    if isinstance(entries, str):
        try:
            entries = json.loads(entries)
        except ValueError as error:
            raise ValueError(f"the constraint list is not JSON: {error}") from None
    if not isinstance(entries, list | tuple) or not 0 < len(entries) <= MAX_CONSTRAINTS:
        raise ValueError(f"expected a list of 1 to {MAX_CONSTRAINTS} constraints")
    return list(entries)


def _paired(meta: Mapping[str, Any]) -> list[Any]:
    ids, kwargs = meta["instruction_id_list"], meta.get("kwargs")
    weights = meta.get("weights")
    if not isinstance(ids, list | tuple) or not 0 < len(ids) <= MAX_CONSTRAINTS:
        raise ValueError(f"instruction_id_list: expected 1 to {MAX_CONSTRAINTS} ids")
    for name, column in (("kwargs", kwargs), ("weights", weights)):
        if name == "weights" and column is None:
            continue
        if not isinstance(column, list | tuple) or len(column) != len(ids):
            raise ValueError(f"{name}: expected a list as long as instruction_id_list ({len(ids)})")
    weights = weights or [1.0] * len(ids)
    return [
        {"id": name, "kwargs": given, "weight": weight}
        for name, given, weight in zip(ids, kwargs or (), weights, strict=True)
    ]


def stated(entries: Sequence[Any], known: Known = HARD) -> tuple[Stated, ...]:
    """Every entry with its parameters checked. Raises ``ValueError`` that names the first fault."""
    return tuple(_stated(entry, known) for entry in entries)


def _stated(entry: Any, known: Known) -> Stated:
    keys = {"id", "kwargs", "weight"}
    if not isinstance(entry, Mapping) or not {"id"} <= set(entry) <= keys:
        raise ValueError(f"a constraint is {{id, kwargs, weight}}, got {entry!r}")
    name, kwargs = entry["id"], entry.get("kwargs") or {}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown constraint {name!r}; known: {sorted(known)}")
    try:
        given = {key: value for key, value in kwargs.items() if value is not None}
        return Stated(name, known[name](**given), _WEIGHT.validate_python(entry.get("weight", 1.0)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its parameters"
        told = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{name}: {where}: {told}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from None
