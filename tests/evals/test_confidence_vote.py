"""Voting by hand-made siblings, and by what the verifiers of a search write down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from evals.confidence_vote import Said, read_groups, vote_shares, winner
from rewards.search import SearchAccuracy, SearchReliability
from tests.rewards.samples import sample


def test_confidence_outweighs_numbers_and_a_malformed_sample_has_no_vote() -> None:
    siblings = [
        Said("Bergen", 2, False), Said("bergen.", 1, False), Said("Oslo", 8, True),
        Said(None, 0, False),
    ]  # fmt: skip
    assert winner(siblings, weighted=False) == siblings[0]
    assert winner(siblings, weighted=True) == siblings[2]
    assert winner([Said(None, 0, False)], weighted=True) is None
    assert winner([Said("a", 0, True), Said("b", 0, False)], weighted=True) == Said("a", 0, True)
    shares = vote_shares([siblings, [Said("x", 5, True)] * 4, [Said(None, 0, False)] * 4])
    assert shares == (pytest.approx((0.25 + 1 + 0) / 3), pytest.approx(1 / 3), 2 / 3, 3)


def rows(answers: list[tuple[str, int]], key: str = "0/0") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"event": "principles"}]
    for index, (answer, confidence) in enumerate(answers):
        text = (
            f"<think>x</think><answer>{answer}</answer><confidence>{confidence}</confidence>"
            if answer
            else "hm"
        )
        request = sample(text, reference="Oslo", sample_id=f"{key}/{index}")
        for verifier in (SearchAccuracy(principle="a"), SearchReliability(principle="r")):
            (verdict,) = asyncio.run(verifier.score([request]))
            found.append(verdict.as_row() | {"attempt": 1})
    return found


def test_a_log_of_a_run_is_read_group_by_group() -> None:
    log = rows([("Oslo", 7), ("Bergen", 3), ("", 0)])
    whole = list(read_groups(log))
    assert whole == [[Said("Oslo", 7, True), Said("Bergen", 3, False), Said(None, 0, False)]]
    assert list(read_groups([*log, *rows([("Oslo", 7)], "0/1")[:2]])) == whole, "half judged"
    with pytest.raises(ValueError, match="no question"):
        vote_shares(read_groups([{"event": "principles"}]))
