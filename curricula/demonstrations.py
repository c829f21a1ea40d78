"""Rows of the supervised rung: ``{prompt, response}``, where ``prompt`` is what it is in a prompt
file, a string or a list of messages. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curricula.prompts import take_messages
from curricula.rows import read_rows
from safeladder.errors import DataError
from safeladder.records import Message


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation and the answer to learn."""

    messages: tuple[Message, ...]
    response: str
    """Never empty."""


def load_demonstrations(paths: Sequence[Path]) -> list[Demonstration]:
    """All rows of all files, in order. Raises ``DataError`` naming file, line and column."""
    rows = []
    for path in paths:
        for place, row in read_rows(path):
            response = row.get("response")
            if not isinstance(response, str) or not response.strip():
                raise DataError(f"{place}: column response: must be text that is not empty")
            rows.append(Demonstration(take_messages(place, row), response))
    return rows
