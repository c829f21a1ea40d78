"""Rows of the supervised rung: prompt and response as token ids, the stop token trained too."""

from __future__ import annotations

from actors.rendering import PromptRenderer
from curricula.prompts import read_rows
from learners.supervised import SftRow
from safeladder.config import Config
from safeladder.records import Message


def supervised_rows(config: Config) -> list[SftRow]:
    """All rows of ``sft.data``, in file order, in the same chat format as the rollouts."""
    if config.sft is None:
        return []
    renderer = PromptRenderer.from_config(config.model)
    rows = []
    for path in config.sft.data:
        for _, row in read_rows(path):
            prompt = renderer.render_messages((Message("user", row["prompt"]),))
            answer = renderer.encode_answer(row["response"])
            rows.append(SftRow(prompt_tokens=prompt, tokens=answer))
    return rows
