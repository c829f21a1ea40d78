"""Rows of the supervised rung: prompt and response as token ids, the stop token trained too."""

from __future__ import annotations

from actors.rendering import PromptRenderer
from curricula.demonstrations import load_demonstrations
from learners.supervised import SftRow
from safeladder.config import Config


def supervised_rows(config: Config) -> list[SftRow]:
    """All rows of ``sft.data``, in file order, in the same chat format as the rollouts."""
    if config.sft is None:
        return []
    renderer = PromptRenderer.from_config(config.model)
    return [
        SftRow(
            prompt_tokens=renderer.render_messages(row.messages),
            tokens=renderer.encode_answer(row.response),
        )
        for row in load_demonstrations(config.sft.data)
    ]
