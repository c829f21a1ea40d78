"""A quorum has an opinion only if enough members do, and if they agree."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.deadline import score_with_deadline
from rewards.judging import Judgment, SampleVerifier
from rewards.quorum import Quorum
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus
from tests.rewards.samples import sample

ME = "tests.rewards.test_quorum"


class Fixed(SampleVerifier):
    """Always the same score; a negative one sleeps, -2 raises."""

    def __init__(self, *, principle: str, score: float, label: str = "x") -> None:
        super().__init__(principle, {"score": score, "label": label})
        self._score = score
        self._label = label

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        if self._score == -2:
            raise RuntimeError("broken")
        if self._score < 0:
            await asyncio.sleep(60)
        return Judgment(self._score, self._label)


def members(*scores: float) -> list[dict[str, Any]]:
    return [{"verifier": f"{ME}:Fixed", "options": {"score": score}} for score in scores]


def quorum(*scores: float, **options: Any) -> Quorum:
    return Quorum(principle="safety", members=members(*scores), **({"timeout_s": 0.2} | options))


def vote(verifier: Quorum) -> Verdict:
    (verdict,) = asyncio.run(verifier.score([sample("an answer", "a question")]))
    return verdict


def test_the_median_counts() -> None:
    verdict = vote(quorum(0.0, 0.75, 1.0))
    assert (verdict.status, verdict.score, verdict.label) == (VerdictStatus.OK, 0.75, "x")
    assert "3 of 3, spread 1.00" in (verdict.evidence or "")
    assert verdict.disagreement == 1.0


@pytest.mark.parametrize("absent", [-1, -2])
def test_a_member_that_hangs_or_breaks_does_not_count(absent: float) -> None:
    assert vote(quorum(0.25, 0.75, absent)).score == 0.5
    alone = vote(quorum(0.25, absent, absent))
    assert (alone.status, alone.cause) == (VerdictStatus.INVALID, InvalidCause.ABSTAIN)
    assert alone.score is None
    assert alone.disagreement is None, "one answer has nobody to disagree with"


def test_members_that_disagree_have_no_opinion() -> None:
    close = vote(quorum(0.5, 0.7, max_spread=0.25))
    assert (close.score, close.disagreement) == (pytest.approx(0.6), pytest.approx(0.2))
    split = vote(quorum(0.2, 0.9, max_spread=0.25))
    assert (split.cause, split.score) == (InvalidCause.ABSTAIN, None)
    assert split.disagreement == pytest.approx(0.7), "an opinion withheld is still measured"


def test_the_version_follows_the_members() -> None:
    assert quorum(0.1, 0.2).version == quorum(0.1, 0.2).version
    assert quorum(0.1, 0.2).version != quorum(0.1, 0.3).version
    assert quorum(0.1, 0.2).version != quorum(0.1, 0.2, need=1).version
    assert quorum(0.1, 0.2).version != quorum(0.1, 0.2, grace_s=0.05).version


def test_members_without_a_time_of_their_own_have_less_than_the_principle() -> None:
    config = PrincipleConfig(
        verifier="rewards.quorum:Quorum", options={"members": members(1, 1, -1)}, timeout_s=0.5
    )

    async def run() -> list[Verdict]:
        asked = [sample("an answer", "a question")]
        verifier = build_verifier("safety", config)
        return await score_with_deadline(verifier, asked, config.timeout_s, principle="safety")

    (verdict,) = asyncio.run(run())
    assert (verdict.status, verdict.score) == (VerdictStatus.OK, 1.0)


def test_a_disagreement_is_not_asked_about_again_for_a_member_that_was_away() -> None:
    split = vote(quorum(0.2, 0.9, -1, max_spread=0.25))
    assert (split.cause, split.retryable) == (InvalidCause.ABSTAIN, False)
    alone = vote(quorum(0.2, -1, -1))
    assert (alone.cause, alone.retryable) == (InvalidCause.ABSTAIN, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": []}, "at least two"),
        ({"members": [{"verifier": f"{ME}:Fixed"}] * 2, "need": 3}, "3 of 2"),
        ({"members": [{"verifer": "x"}, {"verifier": "y"}]}, "unknown key 'verifer'"),
        ({"members": [{"verifier": f"{ME}:Fixd"}] * 2}, "did you mean 'Fixed'"),
        (
            {"members": members(1, 1), "timeout_s": 30},
            r"safety\.options: timeout_s: 30 s .* below 30 s, principles\.safety\.timeout_s",
        ),
        ({"members": members(1, 1), "grace_s": -1}, "grace_s not below 0"),
        ({"members": members(1, 1), "principle_timeout_s": 99}, "unknown option"),
        (
            {
                "members": [
                    {
                        "verifier": "rewards.quorum:Quorum",
                        "options": {"members": members(1, 1), "timeout_s": 25},
                    }
                ]
                * 2
            },
            "25 s for a member must be below 24 s",
        ),
    ],
)
def test_a_quorum_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    config = PrincipleConfig.model_validate(
        {"verifier": "rewards.quorum:Quorum", "options": options}
    )
    with pytest.raises(ConfigError, match=message):
        build_verifier("safety", config)
