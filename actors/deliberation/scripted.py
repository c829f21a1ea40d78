"""User turns that are written down: each answer of the model is followed by the next of them."""

from __future__ import annotations

from typing import Any

from safeladder.conversation import ModelTurn, Reply
from safeladder.records import Prompt


class ScriptedTurns:
    """Further user turns from the column ``column`` of each data row, a list of texts. The
    conversation is over with the model's answer to the last one; a row with an empty list has one
    turn, and one without the column is a fault of the data. Resumable: its state is what is left.
    """

    is_resumable = True

    def __init__(self, *, column: str = "turns") -> None:
        self._column = column

    def start(self) -> None:
        """Nothing to prepare."""

    def close(self) -> None:
        """Nothing to free."""

    def fault(self, prompt: Prompt) -> str | None:
        """Why no conversation can be made of a row, or None."""
        turns: Any = prompt.meta.get(self._column)
        is_list = isinstance(turns, list | tuple)
        if is_list and all(isinstance(turn, str) and turn.strip() for turn in turns):
            return None
        return f"prompt {prompt.id}: column {self._column!r} must be a list of texts, got {turns!r}"

    def begin(self, prompt: Prompt, text: str) -> Reply:
        """The prompt itself is the first user turn."""
        if (fault := self.fault(prompt)) is not None:
            raise ValueError(fault)
        return Reply(state=list(prompt.meta[self._column]))

    def reply(self, state: Any, turn: ModelTurn) -> Reply:
        """The next user turn, or the end."""
        if not state:
            return Reply(is_over=True)
        return Reply(text=state[0], state=state[1:])
