"""Rows of supervised training: ``{prompt, response}``, where ``prompt`` is what it is in a prompt
file, a string or a list of messages; or the columns of ``conversations``. What else a row may have
(``route``, ``reference``, ``lang``, ``source``) is what an acceptance filter asks for. Knows
nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curricula.conversations import ASSISTANT, answer_of, conversation_of
from curricula.prompts import REFERENCE_COLUMNS, take_images
from curricula.rows import read_rows
from safeladder.errors import DataError
from safeladder.records import Message

ANSWERS = ("response", "completion", "output")
"""The first of these that a row has is its answer; else the conversation's last turn is."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation and the answer to learn."""

    messages: tuple[Message, ...]
    response: str
    """Never empty."""
    place: str = field(default="", compare=False)
    """``file:line``."""
    source: str = field(default="", compare=False)
    """Column ``source``, or the name of the file."""
    route: str | None = field(default=None, compare=False)
    reference: str | None = field(default=None, compare=False)
    lang: str = field(default="en", compare=False)
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)
    images: tuple[str, ...] = ()
    """Paths of what the conversation shows."""


def load_demonstrations(paths: Sequence[Path]) -> list[Demonstration]:
    """All rows of all files, in order. Raises ``DataError`` naming file, line and column."""
    return [_demonstration(path, place, row) for path in paths for place, row in read_rows(path)]


def _demonstration(path: Path, place: str, row: Mapping[str, Any]) -> Demonstration:
    column = next((name for name in ANSWERS if row.get(name) is not None), None)
    messages = conversation_of(place, row, shows=True)
    if column is not None:
        response = answer_of(place, row, column)
    elif messages[-1].role == ASSISTANT and len(messages) > 1:
        messages, response = messages[:-1], messages[-1].content
    else:
        raise DataError(f"{place}: column response: must be text that is not empty")
    route, meta = row.get("route"), row.get("meta")
    if route is not None and not isinstance(route, str):
        raise DataError(f"{place}: column route: must be the name of a route")
    references = (row[name] for name in REFERENCE_COLUMNS if isinstance(row.get(name), str))
    return Demonstration(
        messages,
        response,
        place,
        str(row.get("source") or path.name),
        route,
        next(references, None),
        str(row.get("lang") or "en"),
        meta if isinstance(meta, dict) else {},
        tuple(str(path.parent / image) for image in take_images(place, dict(row))),
    )
