"""Rows of preference training: ``{prompt, chosen, rejected}``, in the columns of ``conversations``
too. TRL's implicit prompt is what ``chosen`` and ``rejected`` have in common before their last
turns. Knows nothing of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.conversations import PROMPTS, answer_of, conversation_of
from curricula.rows import read_rows
from safeladder.config import SelectionConfig
from safeladder.errors import DataError
from safeladder.records import Message


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A conversation and two answers to it."""

    messages: tuple[Message, ...]
    chosen: str
    """Never empty, as ``rejected``, and never the same."""
    rejected: str
    place: str = field(default="", compare=False)
    """``file:line``."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row as it stands."""


def load_preferences(paths: Sequence[Path]) -> list[PreferencePair]:
    """All rows of all files, in order. Raises ``DataError`` naming file, line and column."""
    return [_pair(place, row) for path in paths for place, row in read_rows(path)]


def _pair(place: str, row: Mapping[str, Any]) -> PreferencePair:
    chosen, rejected = (answer_of(place, row, column) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{place}: chosen and rejected are the same text; remove the row")
    if not any(row.get(column) is not None for column in PROMPTS):
        row = {"messages": _common_turns(place, row)}
    return PreferencePair(conversation_of(place, row), chosen, rejected, place, row)


def select(
    pairs: Sequence[PreferencePair], selection: SelectionConfig, seed: int
) -> tuple[list[PreferencePair], int]:
    """The pairs between the bounds and those drawn from the others, in file order; how many were
    drawn. Raises ``DataError`` for a row without the column, or if nothing is between the bounds.
    """
    taken = {index for index, pair in enumerate(pairs) if selection.takes(_value(pair, selection))}
    if not taken:
        values = sorted({_value(pair, selection) for pair in pairs})
        raise DataError(
            f"preference.select: no pair has {selection.column} between the bounds; the rows have "
            f"{', '.join(f'{value:g}' for value in values)}"
        )
    others = [index for index in range(len(pairs)) if index not in taken]
    wanted = round(selection.rehearsal / (1 - selection.rehearsal) * len(taken))
    drawn = random.Random(f"{seed}/rehearsal").sample(others, min(wanted, len(others)))
    return [pairs[index] for index in sorted(taken.union(drawn))], len(drawn)


def _value(pair: PreferencePair, selection: SelectionConfig) -> float:
    value = pair.columns.get(selection.column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{pair.place}: column {selection.column}: preference.select wants a number there, not "
            f"{value!r}"
        )
    return float(value)


def _common_turns(place: str, row: Mapping[str, Any]) -> list[Any]:
    """TRL's implicit prompt: all turns but the last, equal in both."""
    before = [
        row[column][:-1] for column in ("chosen", "rejected") if isinstance(row[column], list)
    ]
    if len(before) == 2 and before[0] and before[0] == before[1]:
        turns: list[Any] = before[0]
        return turns
    raise DataError(
        f"{place}: column prompt is missing, and chosen and rejected are no conversations that "
        "begin with the same turns; give a prompt"
    )
