"""Rows of a value model: ``{prompt, prefix, returns}``, where ``prefix`` is how a chain begins and
``returns`` has for each principle the mean score of continuations from there. Knows nothing of
tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.conversations import conversation_of
from curricula.rows import read_rows
from safeladder.errors import DataError
from safeladder.records import Message


@dataclass(frozen=True, slots=True)
class PrefixReturns:
    """What continuations of a prefix earned."""

    messages: tuple[Message, ...]
    prefix: str
    """Empty at the beginning of the answer."""
    returns: Mapping[str, float]
    """Principle → mean score in [0, 1]; at least one."""
    place: str = field(default="", compare=False)
    """``file:line``."""


def load_returns(paths: Sequence[Path], principles: Collection[str]) -> list[PrefixReturns]:
    """All rows of all files, in order. Raises ``DataError`` naming file, line and column, or a
    principle of which no row has a return."""
    rows = [_row(place, row, principles) for path in paths for place, row in read_rows(path)]
    for name in principles:
        if not any(name in row.returns for row in rows):
            raise DataError(
                f"{', '.join(map(str, paths))}: no row has a return for {name!r} of "
                "value_model.principles, so its head would learn nothing; add some or take it away"
            )
    return rows


def _row(place: str, row: Mapping[str, Any], principles: Collection[str]) -> PrefixReturns:
    prefix = row.get("prefix")
    if not isinstance(prefix, str):
        raise DataError(f"{place}: column prefix: must be text; empty is the answer's beginning")
    returns = row.get("returns")
    if not isinstance(returns, dict) or not returns:
        raise DataError(f'{place}: column returns: must be an object such as {{"safety": 0.75}}')
    for name, value in returns.items():
        if name not in principles:
            close = difflib.get_close_matches(name, principles, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(principles)}"
            raise DataError(
                f"{place}: column returns: {name!r} is not in value_model.principles; {hint}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{place}: column returns: {name} is {value!r}, no number from 0 to 1")
    return PrefixReturns(
        conversation_of(place, row), prefix, {k: float(v) for k, v in returns.items()}, place
    )
