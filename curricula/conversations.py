"""Conversations with answers, in the columns that trainers of other projects read: TRL's
(``messages`` that end with the assistant, ``completion``, an implicit prompt in ``chosen`` and
``rejected``) and LLaMA-Factory's (``instruction`` with ``input``, ``output``, ``system``;
``conversations`` of ``from`` and ``value``). Knows no loss and no tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curricula.prompts import take_messages
from safeladder.errors import DataError
from safeladder.records import Message

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip
"""ShareGPT's names of who speaks → ours."""
ASSISTANT = "assistant"
PROMPTS = ("prompt", "messages", "conversations", "instruction")
"""Columns of which one holds the prompt."""


def conversation_of(
    place: str, row: Mapping[str, Any], *, shows: bool = False
) -> tuple[Message, ...]:
    """The turns before the answer, or up to it if the row has it as a last turn. Raises
    ``DataError``, also for a row with images unless the caller ``shows`` them."""
    if row.get("images") and not shows:
        raise DataError(
            f"{place}: column images: only RL and supervised training read images as yet; remove "
            "the row, or its images if the question stands without them"
        )
    if "prompt" not in row and "messages" not in row:
        if "conversations" in row:
            turns = row["conversations"]
            if not isinstance(turns, list):
                raise DataError(f"{place}: column conversations: must be a list of turns")
            row = {"messages": [_turn(f"{place}: column conversations", t) for t in turns]}
        elif "instruction" in row:
            row = {"messages": _instruction(place, row)}
    return take_messages(place, dict(row))


def answer_of(place: str, row: Mapping[str, Any], column: str) -> str:
    """The text in a column: text, one turn, or the last of a list of turns. Raises ``DataError``
    if it is empty."""
    value = row.get(column)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = _turn(f"{place}: column {column}", value)["content"]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: column {column}: must be text that is not empty")
    return value


def _instruction(place: str, row: Mapping[str, Any]) -> list[dict[str, str]]:
    parts = [row.get("instruction"), row.get("input") or None]
    texts = [part for part in parts if part is not None]
    if not all(isinstance(text, str) for text in texts) or not texts:
        raise DataError(f"{place}: column instruction: must be text, as must input")
    system = row.get("system")
    first = [{"role": "system", "content": str(system)}] if system else []
    return [*first, {"role": "user", "content": "\n".join(map(str, texts))}]


def _turn(place: str, turn: Any) -> dict[str, str]:
    if isinstance(turn, Mapping):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role in ROLES and isinstance(content, str):
            return {"role": ROLES[role], "content": content}
    raise DataError(
        f'{place}: a turn is {{"role": "user", "content": "…"}} or {{"from": "human", '
        '"value": "…"}'
    )
