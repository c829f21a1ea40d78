"""A fitted classifier from its file, without the library that fitted it."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.text_classifier import LinearText, TextModel, load_model, terms
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, Verdict
from tests.rewards.samples import sample

MODEL: dict[str, Any] = {
    "format": "safeladder-text-classifier-1",
    "inputs": ["answer"],
    "labels": ["bad", "good"],
    "terms": ["a:kind", "a:cruel", "a~ki"],
    "idf": [2.0, 2.0, 1.0],
    "weights": [[0.0, 3.0, 0.0], [4.0, 0.0, 0.0]],
    "biases": [0.5, 0.0],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps(MODEL | changes), encoding="utf-8")
    return path


def score(path: Path, *answers: str, **options: Any) -> list[Verdict]:
    given = {"path": str(path), "scores": {"good": 1.0, "bad": 0.0}} | options
    config = PrincipleConfig(verifier="rewards.text_classifier:TextClassifier", options=given)
    verifier = build_verifier("value", config)
    return asyncio.run(verifier.score([sample(answer) for answer in answers]))


def test_the_score_is_the_softmax_of_the_weighted_terms(tmp_path: Path) -> None:
    # tf-idf of "kind kitten": a:kind 2 * (1 + ln 1), a~ki 1 * (1 + ln 2); divided by their norm
    kind = 2 / math.hypot(2, 1 + math.log(2))
    expected = 1 / (1 + math.exp(0.5 - 4 * kind))
    verdicts = score(write(tmp_path), "kind kitten", "cruel")
    assert verdicts[0].score == pytest.approx(expected)
    assert verdicts[1].score == pytest.approx(1 / (1 + math.exp(3.5)))
    assert [v.label for v in verdicts] == ["good", "bad"]
    assert [v.score for v in score(write(tmp_path), "kind", "cruel", score="hard")] == [1.0, 0.0]


def test_only_the_visible_answer_is_read(tmp_path: Path) -> None:
    (verdict,) = score(write(tmp_path), "<think>kind</think> cruel")
    assert verdict.label == "bad"


@pytest.mark.parametrize("answer", ["", "...", "unheard of", "kit"])
def test_a_text_without_a_known_word_has_no_score(tmp_path: Path, answer: str) -> None:
    (verdict,) = score(write(tmp_path), answer)
    assert (verdict.score, verdict.cause) == (None, InvalidCause.ABSTAIN)


def test_another_file_is_another_version(tmp_path: Path) -> None:
    (first,) = score(write(tmp_path), "kind")
    (second,) = score(write(tmp_path, biases=[0.6, 0.0]), "kind")
    assert first.verifier_version != second.verifier_version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idf": [1.0, 2.0]}, "differ in size"),
        ({"biases": [0.0]}, "differ in size"),
        ({"labels": ["good", "good"]}, "stands twice"),
        ({"terms": ["a:kind", "a:kind", "a~ki"]}, "stands twice"),
        ({"idf": [1.0, 2.0, "NaN"]}, "idf.2"),
        ({"format": "pickle"}, "format"),
        ({"inputs": []}, "inputs"),
    ],
)
def test_a_file_that_is_no_classifier_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(write(tmp_path, **changes))


def test_missing_files_and_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        score(tmp_path / "none.json", "kind")
    with pytest.raises(ConfigError, match="scores must name the labels"):
        score(write(tmp_path), "kind", scores={"good": 1.0})


def test_terms_know_their_part() -> None:
    found = set(terms({"question": "Be kind?", "answer": "你好"}))
    assert {"q#", "q:be", "q:be kind", "q~ kin", "a:你", "a:你 好"} <= found
    assert not any(term.startswith("a") and "kind" in term for term in found)


def test_a_linear_text_names_its_labels_in_order() -> None:
    text = LinearText(TextModel.model_validate(MODEL))
    logprobs = text.logprobs({"answer": "kind"})
    assert logprobs is not None
    assert text.labels[logprobs.index(max(logprobs))] == "good"
    assert math.fsum(map(math.exp, logprobs)) == pytest.approx(1)
