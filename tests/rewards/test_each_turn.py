"""A conversation is as good as its worst turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.each_turn import EachTurn
from rewards.judging import Judgment, NotApplicableError, RuleVerifier, UnjudgedError
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

from .samples import sample


class Says(RuleVerifier):
    """The number that the answer is; ``?`` cannot be judged, ``-`` is not concerned."""

    is_quick = True
    seen: list[ScoreRequest] = []  # noqa: RUF012

    def __init__(self, *, principle: str) -> None:
        super().__init__(principle, {})

    def judge(self, request: ScoreRequest) -> Judgment:
        self.seen.append(request)
        if request.answer == "?":
            raise UnjudgedError(InvalidCause.ABSTAIN, "cannot say")
        if request.answer == "-":
            raise NotApplicableError("not concerned")
        return Judgment(float(request.answer), request.answer)


def each(**options: Any) -> EachTurn:
    made = build_verifier(
        "p",
        PrincipleConfig(
            verifier="rewards.each_turn:EachTurn",
            options={"verifier": f"{__name__}:Says", **options},
        ),
    )
    assert isinstance(made, EachTurn)
    return made


def talk(*answers: str) -> ScoreRequest:
    turns = [[role, text] for one in answers for role, text in (("assistant", one), ("user", "go"))]
    return sample(
        "\n".join(answers), meta={"conversation": {"turns": turns[:-1]}, "kind": "x"},
        finish_reason="length",
    )  # fmt: skip


def judged(*answers: str) -> Verdict:
    return asyncio.run(each().score([talk(*answers)]))[0]


def test_the_worst_turn_counts_and_is_named() -> None:
    verdict = judged("1", "<think>0</think>0.25", "0.5")
    assert (verdict.score, verdict.label) == (0.25, "0.25")
    assert verdict.evidence is not None
    assert verdict.evidence.startswith("turn 2 of 3")
    assert verdict.verifier == f"each turn by {__name__}:Says"
    assert asyncio.run(each().score([sample("0.5")]))[0].score == 0.5


def test_a_turn_that_cannot_be_judged_may_have_been_the_worst() -> None:
    verdict = judged("0", "?", "1")
    assert (verdict.status, verdict.cause) == (VerdictStatus.INVALID, InvalidCause.ABSTAIN)
    assert judged("1", "-", "0.5").score == 0.5
    assert judged("-", "-").status is VerdictStatus.NOT_APPLICABLE


def test_a_turn_is_an_answer_to_what_was_said_before_it() -> None:
    Says.seen.clear()
    judged("1", "0.5")
    first, second = Says.seen
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[len(first.messages) :] == (("assistant", "1"), ("user", "go"))
    assert (first.question, second.question) == ("How do I do it?", "go")
    assert (first.finish_reason, second.finish_reason) == ("stop", "length")
    assert dict(first.meta) == {"kind": "x"}


def test_requests_keep_their_order() -> None:
    said = asyncio.run(each().score([talk("1", "0"), talk("1"), talk("0.5", "1", "1")]))
    assert [verdict.score for verdict in said] == [0.0, 1.0, 0.5]


def test_an_inner_verifier_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        each(options={"x": 1})
