"""A sequence classifier as verifier, on a tiny random model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from rewards.building import build_verifier
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, Verdict
from tests.rewards.samples import sample
from tests.tiny_model import tiny_tokenizer

LABELS = {0: "bad", 1: "fair", 2: "good"}
SCORES = {"good": 1.0, "fair": 0.5, "bad": 0.0}


def tiny_classifier() -> Qwen2ForSequenceClassification:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id, id2label=LABELS, initializer_range=0.5,
        label2id={label: i for i, label in LABELS.items()},
    )  # fmt: skip
    return Qwen2ForSequenceClassification(config).float().eval()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def score(
    path: Path, *answers: str, images: tuple[bytes, ...] = (), **options: Any
) -> list[Verdict]:
    given = {"path": str(path), "scores": SCORES, "inputs": ["answer"]} | options
    config = PrincipleConfig(
        verifier="actors.sequence_classifier:SequenceClassifier", options=given
    )

    async def run() -> list[Verdict]:
        verifier = build_verifier("value", config)
        await verifier.start()
        try:
            return await verifier.score([sample(a, images=images) for a in answers])
        finally:
            await verifier.close()

    return asyncio.run(run())  # fmt: skip


def test_the_score_is_the_expected_one_whatever_else_is_in_the_batch(path: Path) -> None:
    answers = ["kind", "a much longer and crueler answer", "<think>kind</think> no"]
    verdicts = score(path, *answers)
    model, tokenizer = tiny_classifier(), tiny_tokenizer()
    for text, verdict in zip(["kind", answers[1], "no"], verdicts, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0].detach()
        shares = logits.softmax(-1)
        assert verdict.score == pytest.approx(float(shares[2] + 0.5 * shares[1]), abs=1e-5)
        assert verdict.label == LABELS[int(logits.argmax())]
    hard = score(path, *answers, score="hard")
    assert [v.score for v in hard] == [SCORES[str(v.label)] for v in verdicts]


def test_two_parts_are_read_as_a_pair(path: Path) -> None:
    (verdict,) = score(path, "kind", inputs=["question", "answer"])
    pair = tiny_tokenizer()("How do I do it?", "kind", return_tensors="pt")
    shares = tiny_classifier()(**pair).logits[0].detach().softmax(-1)
    assert verdict.score == pytest.approx(float(shares[2] + 0.5 * shares[1]), abs=1e-5)


def test_what_does_not_fit_is_not_cut_and_not_scored(path: Path) -> None:
    verdicts = score(path, "12345", "123456", max_tokens=5)
    assert [v.cause for v in verdicts] == [None, InvalidCause.ABSTAIN]
    (verdict,) = score(path, "kind", images=(b"png",))
    assert verdict.cause is InvalidCause.ABSTAIN


def test_labels_and_files_are_checked_at_start(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.scores: .*'bad', 'fair', 'good'"):
        score(path, "kind", scores={"good": 1.0, "bad": 0.0})
    with pytest.raises(VerifierUnavailableError, match="does not start"):
        score(tmp_path, "kind")
    with pytest.raises(ConfigError, match="one or two parts"):
        score(path, "kind", inputs=["question", "answer", "reference"])
