"""Answers compared with a reference as text, phrase or number."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rewards.exact import ExactAnswer
from safeladder.records import InvalidCause, VerdictStatus
from tests.rewards.samples import sample


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("10", "4 + 6 = 10", 1),
        ("10", "<think>maybe 11</think> It is 10.0.", 1),
        ("10", "10, no: 11", 0),
        ("10", "110", 0),
        ("-3", "The result is -3", 1),
        ("3", "5-3 leaves 2; so 5-3", 1),
        ("1,234", "about 1234", 1),
        ("0.5", "1/2", 1),
        ("10", "ten", 0),
        ("10", r"\boxed{10}, and I checked it 3 times", 1),
        ("10", r"10 is wrong, \boxed{11}", 0),
        ("Hanoi", "The capital of Vietnam is Hanoi.", 1),
        ("Hanoi", "hanoi", 1),
        ("Hanoi", "Hanoian food", 0),
        ("Hanoi", " ".join(f"city{i}" for i in range(40)) + " Hanoi", 0),
    ],
)
def test_auto_compares_numbers_by_value_and_names_as_phrases(
    reference: str, answer: str, score: float
) -> None:
    judgment = ExactAnswer(principle="rule").judge(sample(answer, reference=reference))
    assert judgment.score == score, judgment.evidence


def test_text_compares_the_whole_answer_and_aliases_count() -> None:
    verifier = ExactAnswer(principle="rule", match="text")
    aliases = {"aliases": ["the Big Apple"]}
    assert verifier.judge(sample("New York!", reference="new york")).score == 1
    assert verifier.judge(sample("In New York", reference="new york")).score == 0
    assert verifier.judge(sample("Big Apple", reference="new york", meta=aliases)).score == 1


@pytest.mark.parametrize(
    ("match", "fields"),
    [
        ("auto", {"reference": None}),
        ("auto", {"reference": "  "}),
        ("number", {"reference": "ten"}),
        ("auto", {"reference": "ten", "meta": {"aliases": "10"}}),
    ],
)
def test_a_sample_without_a_usable_reference_is_invalid_and_never_zero(
    match: str, fields: dict[str, Any]
) -> None:
    verifier = ExactAnswer(principle="rule", match=match)  # type: ignore[arg-type]
    good = sample("10", reference="10", sample_id="0/0/1")
    verdict, sibling = asyncio.run(verifier.score([sample("10", **fields), good]))
    assert (verdict.status, verdict.cause) == (VerdictStatus.INVALID, InvalidCause.ERROR)
    assert verdict.score is None
    assert not verdict.retryable
    assert sibling.score == 1
