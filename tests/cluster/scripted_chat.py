"""A chat model for composition tests: each role is told from what it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from safeladder.records import Message

ASKED: list[tuple[str, str]] = []
"""(role, last turn) of every question, in order."""


class ScriptedChat:
    """``judge`` is what the judge says: ``longer``, a label, or any text; ``rewriter`` is the
    rewriter's reply, None a good one; ``writer`` the answer, None one that tells its prompt."""

    def __init__(
        self, judge: str = "longer", rewriter: str | None = None, writer: str | None = None
    ) -> None:
        self._judge, self._rewriter, self._writer = judge, rewriter, writer

    async def complete(
        self, messages: Sequence[Sequence[Message]], max_tokens: int
    ) -> Sequence[str]:
        return [self._reply(turns) for turns in messages]

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> Sequence[list[float]]:
        return [
            [0.0 if label == self._choice(turns[-1].content) else -1.0 for label in labels]
            for turns in conversations
        ]

    async def close(self) -> None:
        pass

    def _reply(self, turns: Sequence[Message]) -> str:
        text = turns[-1].content
        if text == "Say yes.":
            return "yes"
        if "ANSWER A" in text:
            ASKED.append(("judge", text))
            return self._choice(text)
        if "KIND OF REQUIREMENT" in text:
            ASKED.append(("rewriter", text))
            kind = text.partition("KIND OF REQUIREMENT: ")[2].splitlines()[0]
            good = json.dumps({"added_constraint": f"Please do {kind}."})
            return good if self._rewriter is None else self._rewriter
        ASKED.append(("writer", text))
        return f"An answer to: {text}" if self._writer is None else self._writer

    def _choice(self, text: str) -> str:
        if self._judge != "longer":
            return self._judge
        first, second = re.findall(r"ANSWER [AB] \w+\n(.*?)\nEND \w+\n", text + "\n", re.DOTALL)
        return "A" if len(first) > len(second) else "B" if len(second) > len(first) else "tie"


def model(**options: Any) -> dict[str, Any]:
    """A model of a composition's config."""
    return {
        "completer": "tests.cluster.scripted_chat:ScriptedChat",
        "completer_options": options,
    }
