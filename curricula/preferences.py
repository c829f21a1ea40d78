"""Rows of preference training: ``{prompt, chosen, rejected}``, in the columns of ``conversations``
too. TRL's implicit prompt is what ``chosen`` and ``rejected`` have in common before their last
turns. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.conversations import PROMPTS, answer_of, conversation_of
from curricula.rows import read_rows
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


def load_preferences(paths: Sequence[Path]) -> list[PreferencePair]:
    """All rows of all files, in order. Raises ``DataError`` naming file, line and column."""
    return [_pair(place, row) for path in paths for place, row in read_rows(path)]


def _pair(place: str, row: Mapping[str, Any]) -> PreferencePair:
    chosen, rejected = (answer_of(place, row, column) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError(f"{place}: chosen and rejected are the same text; remove the row")
    if not any(row.get(column) is not None for column in PROMPTS):
        row = {"messages": _common_turns(place, row)}
    return PreferencePair(conversation_of(place, row), chosen, rejected, place)


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
