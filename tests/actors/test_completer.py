from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.completer import TransformersCompleter
from actors.rendering import PromptRenderer
from rewards.building import build_verifier
from rewards.judging import UnjudgedError
from safeladder.config import PrincipleConfig
from safeladder.records import InvalidCause, Message, Verdict
from tests.rewards.samples import sample
from tests.tiny_model import save_tiny_model

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


@pytest.mark.parametrize("mode", ["reply", "logits"])
def test_a_prompt_beyond_the_context_has_no_verdict_and_its_neighbours_have_theirs(
    model_path: Path, tmp_path: Path, mode: str
) -> None:
    async def judge(model: Path, answers: list[str], **more: Any) -> list[Verdict]:
        config = PrincipleConfig(
            verifier="rewards.judge:Judge",
            options={
                "template": "value", "mode": mode, "min_mass": 0.0,
                "completer": "actors.completer:TransformersCompleter",
                "completer_options": {"path": str(model), **more},
            },
        )  # fmt: skip
        verifier = build_verifier("value", config)
        await verifier.start()
        try:
            return await verifier.score(
                [sample(answer, sample_id=f"0/0/{i}") for i, answer in enumerate(answers)]
            )
        finally:
            await verifier.close()

    # The tiny model's context is 512 bytes: not even the template fits.
    (verdict,) = asyncio.run(judge(model_path, ["a"]))
    assert verdict.cause is InvalidCause.ABSTAIN
    assert "context ends at 512" in (verdict.evidence or "")
    wide = save_tiny_model(tmp_path, context=2048)
    started_s = time.monotonic()
    verdicts = asyncio.run(judge(wide, ["a", "b" * 200_000, "c"]))
    assert time.monotonic() - started_s < 60
    assert verdicts[1].cause is InvalidCause.ABSTAIN
    assert (verdicts[1].score, verdicts[1].retryable) == (None, False)
    assert {v.cause for v in verdicts[::2]} <= {None, InvalidCause.MALFORMED}
    (less,) = asyncio.run(judge(wide, ["a"], max_model_tokens=100))
    assert "context ends at 100" in (less.evidence or "")


def test_the_tokens_that_follow_a_prompt_count_too(model_path: Path) -> None:
    conversation = (Message("user", "hi"),)
    size = PromptRenderer(model_path).render_messages(conversation).size

    async def work(limit: int) -> list[Any]:
        completer = TransformersCompleter(model_path, max_model_tokens=limit)
        try:
            replies = await completer.complete([conversation], 10)
            return [*replies, *await completer.label_logprobs([conversation], ["a", "four"])]
        finally:
            await completer.close()

    def fits(limit: int) -> list[bool]:
        return [not isinstance(found, UnjudgedError) for found in asyncio.run(work(limit))]

    assert fits(size + 10) == [True, True]
    assert fits(size + 9) == [False, True]
    assert fits(size + 4) == [False, True]
    assert fits(size + 3) == [False, False]


def test_a_label_without_a_token_is_an_error(model_path: Path) -> None:
    async def work() -> None:
        completer = TransformersCompleter(model_path)
        try:
            await completer.label_logprobs([(Message("user", "hi"),)], ["a", ""])
        finally:
            await completer.close()

    with pytest.raises(ValueError, match="without a token"):
        asyncio.run(work())
