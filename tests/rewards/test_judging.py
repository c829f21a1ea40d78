"""A failure inside one sample stays inside it."""

from __future__ import annotations

import asyncio

import pytest

from safeladder.records import InvalidCause, VerdictStatus
from tests.rewards.samples import sample
from tests.rewards.stand_ins import WordRule


@pytest.mark.parametrize(
    ("answer", "cause", "retryable"),
    [
        ("raise", InvalidCause.ERROR, False),
        ("abstain", InvalidCause.ABSTAIN, False),
        ("gone", InvalidCause.UNAVAILABLE, True),
        ("nan", InvalidCause.OUT_OF_RANGE, False),
        ("high", InvalidCause.OUT_OF_RANGE, False),
    ],
)
def test_a_failed_sample_is_invalid_and_its_siblings_keep_their_scores(
    answer: str, cause: InvalidCause, retryable: bool
) -> None:
    texts = ["yes", answer, "never"]
    requests = [sample(text, sample_id=f"0/0/{i}") for i, text in enumerate(texts)]
    verdicts = asyncio.run(WordRule(principle="p", word="yes").score(requests))
    assert [v.sample_id for v in verdicts] == ["0/0/0", "0/0/1", "0/0/2"]
    assert [v.score for v in verdicts] == [1.0, None, 0.0]
    failed = verdicts[1]
    assert failed.status is VerdictStatus.INVALID
    assert (failed.cause, failed.retryable) == (cause, retryable)
    assert failed.evidence
