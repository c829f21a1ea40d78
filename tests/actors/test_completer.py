from __future__ import annotations

import asyncio
from pathlib import Path

import torch

from actors.completer import TransformersCompleter
from actors.rendering import PromptRenderer
from safeladder.records import Message

from .conftest import tiny_model, tiny_tokenizer


def test_a_batch_of_conversations_gets_the_greedy_answer_of_each(model_path: Path) -> None:
    conversations = [
        (Message("user", "hi"),),
        (Message("system", "be brief"), Message("user", "a longer question"), ),
    ]  # fmt: skip

    async def work() -> tuple[list[str], list[str]]:
        completer = TransformersCompleter(model_path)
        try:
            return await completer.complete(conversations, 10), await completer.complete([], 10)
        finally:
            await completer.close()

    answers, nothing = asyncio.run(work())
    assert nothing == []
    renderer, model = PromptRenderer(model_path), tiny_model(tiny_tokenizer())
    for conversation, answer in zip(conversations, answers, strict=True):
        ids = renderer.render_messages(conversation).tolist()
        start = len(ids)
        while len(ids) < start + 10 and (len(ids) == start or ids[-1] not in renderer.stop_ids):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == tiny_tokenizer().decode(ids[start:], skip_special_tokens=True)
