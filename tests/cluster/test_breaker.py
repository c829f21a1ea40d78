"""An outage of a verifier pauses training and costs no group, whatever its policy is."""

from __future__ import annotations

import pytest

from cluster.breaker import Breaker
from cluster.protocol import Alert, Fail, GrantLease, PauseTraining, ResumeTraining, Score, Train
from safeladder.config import BreakerConfig
from safeladder.records import InvalidCause, Verdict, VerdictStatus
from tests.cluster.coordinator_play import Play, make_config

ERROR = InvalidCause.ERROR
RULE = {"window": 8, "min_verdicts": 4, "max_invalid_share": 0.3}


def verdicts(text: str) -> list[Verdict]:
    """One for each letter: ``x`` is INVALID."""
    return [
        Verdict(
            sample_id="0/0/0",
            principle="safety",
            verifier="v",
            verifier_version="1",
            status=VerdictStatus.INVALID if letter == "x" else VerdictStatus.OK,
            score=None if letter == "x" else 1.0,
            cause=ERROR if letter == "x" else None,
        )
        for letter in text
    ]


@pytest.mark.parametrize(
    ("answers", "is_open"),
    [
        (["xxx"], False),  # too few to tell
        (["xxxx"], True),
        (["oooooo", "xx"], False),  # 25 %
        (["oooooo", "xxx"], True),  # 3 of the newest 8
        (["xxxx", "oooooooo"], True),  # those may have been asked before
    ],
)
def test_it_opens_above_the_share_and_stays_open(answers: list[str], is_open: bool) -> None:
    breaker = Breaker(BreakerConfig.model_validate(RULE))
    for answer in answers:
        breaker.note(verdicts(answer))
    assert breaker.is_open is is_open


def test_a_proof_closes_it_and_only_the_invalid_verdicts_are_forgotten() -> None:
    breaker = Breaker(BreakerConfig.model_validate(RULE))
    breaker.prove(breaker.turn)
    breaker.note(verdicts("ooooo"))
    before = breaker.turn
    breaker.note(verdicts("xxx"))
    breaker.prove(before)  # went out before it opened
    assert breaker.is_open
    breaker.prove(breaker.turn)
    assert not breaker.is_open
    breaker.note(verdicts("xx"))
    assert not breaker.is_open
    breaker.note(verdicts("x"))  # 3 of 8 again: not from the beginning
    assert breaker.is_open


def test_another_rule_counts_what_has_been_seen() -> None:
    breaker = Breaker(BreakerConfig.model_validate(RULE))
    breaker.note(verdicts("oooxx"))
    assert breaker.is_open
    breaker.follow(BreakerConfig.model_validate({**RULE, "max_invalid_share": 0.5}))
    assert not breaker.is_open
    breaker.follow(BreakerConfig.model_validate(RULE))
    assert breaker.is_open


@pytest.mark.parametrize("policy", ["retry", "drop_sample", "drop_group", "pause"])
def test_an_outage_pauses_training_keeps_the_groups_and_ends_by_itself(policy: str) -> None:
    config = make_config(
        principles={"safety": {"verifier": "a:B", "on_invalid": policy}},
        reward={"breaker": {"window": 8, "min_verdicts": 2, "max_invalid_share": 0.5}},
    )
    play = Play(config)
    for grant in play.take(GrantLease):
        play.generate(grant)
    for call in play.take(Score):  # the first fault already is an outage here
        play.judge(call, [ERROR, ERROR], retryable=False)
    assert len(play.take(PauseTraining)) == 1
    (alert,) = play.take(Alert)
    assert alert.kind == "verifier"
    assert "100% of the last 2 verdicts are INVALID" in alert.text
    for _ in range(12):  # a minute of errors
        play.tick(5)
        for call in play.take(Score):
            play.judge(call, [ERROR, ERROR], retryable=False)
    assert play.dropped == {}
    assert play.take(Train) == play.take(ResumeTraining) == []
    play.tick(5)
    for call in play.take(Score):
        play.judge(call, [0.0, 1.0])
    assert len(play.take(ResumeTraining)) == 1
    (train,) = play.take(Train)
    assert [group.rewards for group in train.order.groups] == [(0.0, 1.0)] * 2
    assert play.dropped == {}


def test_the_policy_fail_is_not_softened() -> None:
    config = make_config(
        principles={"safety": {"verifier": "a:B", "on_invalid": "fail"}},
        reward={"breaker": {"window": 2, "min_verdicts": 1}},
    )
    play = Play(config)
    play.generate(play.take(GrantLease)[0])
    play.judge(play.take(Score)[0], [ERROR, ERROR])
    assert len(play.take(Fail)) == 1
