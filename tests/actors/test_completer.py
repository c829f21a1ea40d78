from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
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


def test_a_label_has_the_sum_of_its_tokens_log_probs_whatever_was_read_before(
    model_path: Path,
) -> None:
    conversations = [
        (Message("system", "judge it"), Message("user", "hi")),
        (Message("system", "judge it"), Message("user", "hi there, and more")),
        (Message("user", "other"),),
        (Message("system", "judge it"), Message("user", "hi")),
        (Message("system", "judge it"), Message("user", "hi")),
    ]
    labels = ["safe with warning", "b", "unsafe"]

    async def work() -> list[list[float]]:
        completer = TransformersCompleter(model_path)
        try:
            await completer.complete(conversations[:1], 2)
            return await completer.label_logprobs(conversations, labels)
        finally:
            await completer.close()

    found = asyncio.run(work())
    renderer, model = PromptRenderer(model_path), tiny_model(tiny_tokenizer())
    for conversation, prices in zip(conversations, found, strict=True):
        prompt = renderer.render_messages(conversation).tolist()
        for label, price in zip(labels, prices, strict=True):
            ids = tiny_tokenizer().encode(label, add_special_tokens=False)
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0]
            following = logits[len(prompt) - 1 : -1].log_softmax(-1)
            expected = sum(float(row[token]) for row, token in zip(following, ids, strict=True))
            assert price == pytest.approx(expected, abs=1e-4)
    assert len({len(tiny_tokenizer().encode(label)) for label in labels}) == 3


def test_a_label_without_a_token_is_an_error(model_path: Path) -> None:
    async def work() -> None:
        completer = TransformersCompleter(model_path)
        try:
            await completer.label_logprobs([(Message("user", "hi"),)], ["a", ""])
        finally:
            await completer.close()

    with pytest.raises(ValueError, match="without a token"):
        asyncio.run(work())
