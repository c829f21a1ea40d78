import json

import pytest

from cluster.panel import verifier_fleet
from cluster.protocol import (
    Alert,
    Fail,
    GrantLease,
    PauseTraining,
    ReferenceLost,
    Release,
    ResumeTraining,
    Score,
    ScoreReference,
    ScoringLost,
    Train,
    VerdictsReady,
)
from safeladder.records import InvalidCause
from tests.cluster.coordinator_play import (
    Play,
    config_with,
    generated,
    judged,
    make_config,
    verdict,
)

TIMEOUT = InvalidCause.TIMEOUT
SAFETY = verifier_fleet("safety")


def test_all_principles_of_the_route_are_asked_at_once() -> None:
    _, safety, form = generated(config_with())
    assert safety.indexes == form.indexes == (0, 1, 2)
    assert safety.payload == form.payload == "0/0 attempt 1"


def test_the_reward_is_the_weighted_sum_and_the_audit_names_every_verdict() -> None:
    play, safety, form = generated(config_with())
    play.judge(form, [1.0, 1.0, None])
    assert play.take(Train) == []
    play.judge(safety, [1.0, 0.0, 0.5])
    (group,) = play.take(Train)[0].order.groups
    assert group.rewards == (1.5, 0.5, 0.5)
    audit = json.loads(group.audit)
    assert [(v["sample_id"], v["principle"], v["status"], v["score"]) for v in audit] == [
        ("0/0/0", "safety", "ok", 1.0),
        ("0/0/1", "safety", "ok", 0.0),
        ("0/0/2", "safety", "ok", 0.5),
        ("0/0/0", "format", "ok", 1.0),
        ("0/0/1", "format", "ok", 1.0),
        ("0/0/2", "format", "not_applicable", None),
    ]
    assert audit[0]["verifier_version"] == "1"


def test_a_sample_to_which_no_principle_applies_is_left_out() -> None:
    play, safety, form = generated(config_with())
    play.judge(safety, [None, 0.0, 1.0])
    play.judge(form, [None, None, 1.0])
    (train,) = play.take(Train)
    assert train.order.groups[0].rewards == (None, 0.0, 1.5)


def test_retry_asks_again_for_the_invalid_samples_only() -> None:
    play, safety, form = generated(config_with("retry"))
    play.judge(form, [1.0, 1.0, 1.0])
    play.judge(safety, [0.0, TIMEOUT, 1.0])
    (again,) = play.take(Score)
    assert (again.principle, again.indexes, again.call) == ("safety", (1,), 2)
    play.judge(again, [0.5])
    (train,) = play.take(Train)
    assert train.order.groups[0].rewards == (0.5, 1.0, 1.5)


def test_retry_drops_the_group_once_its_tries_are_spent() -> None:
    play, safety, _ = generated(config_with("retry"))
    play.judge(safety, [0.0, TIMEOUT, 1.0])
    for _ in range(2):
        (again,) = play.take(Score)
        play.judge(again, [TIMEOUT])
    assert play.take(Score) == []
    assert play.dropped == {"invalid": 1}
    assert "INVALID(timeout)" in play.transitions[-3].detail


def test_retry_does_not_ask_again_what_cannot_get_better() -> None:
    play, safety, _ = generated(config_with("retry"))
    play.judge(safety, [0.0, InvalidCause.MALFORMED, 1.0], retryable=False)
    assert play.take(Score) == []
    assert play.dropped == {"invalid": 1}


def test_drop_sample_leaves_the_invalid_sample_out() -> None:
    play, safety, form = generated(config_with("drop_sample"))
    play.judge(safety, [TIMEOUT, 0.0, 1.0])
    play.judge(form, [1.0, 1.0, 1.0])
    (train,) = play.take(Train)
    assert train.order.groups[0].rewards == (None, 0.5, 1.5)


def test_drop_sample_drops_the_group_as_soon_as_fewer_than_two_are_left() -> None:
    play, safety, form = generated(config_with("drop_sample"))
    play.judge(safety, [TIMEOUT, 0.0, TIMEOUT])
    assert play.dropped == {"invalid": 1}
    late = play.coordinator.status().late_results
    play.judge(form, [1.0, 1.0, 1.0])
    assert play.coordinator.status().late_results == late + 1


def test_drop_group_drops_the_group() -> None:
    play, safety, _ = generated(config_with("drop_group"))
    play.judge(safety, [TIMEOUT, 0.0, 1.0])
    assert play.dropped == {"invalid": 1}
    assert play.take(Release)[0].payloads == ("0/0 attempt 1",)


def test_fail_ends_the_run_as_an_unavailable_verifier() -> None:
    play, safety, _ = generated(config_with("fail"))
    play.judge(safety, [0.0, TIMEOUT, 1.0])
    (fail,) = play.take(Fail)
    assert fail.exit_code == 4
    assert "safety: INVALID(timeout) from test on 0/0/1: because" in fail.text


def test_pause_holds_training_up_and_asks_every_5_seconds_until_it_gets_a_verdict() -> None:
    config = config_with("pause").model_copy(
        update={
            "schedule": make_config(schedule={"groups_per_step": 1, "max_staleness": 1}).schedule
        }
    )
    play = Play(config, engines=2)
    for grant in play.take(GrantLease):
        play.generate(grant)
    held, held_form, free, free_form = play.take(Score)
    play.judge(held_form, [1.0, 1.0, 1.0])
    play.judge(held, [0.0, TIMEOUT, 1.0])
    assert len(play.take(PauseTraining)) == len(play.take(Alert)) == 1
    play.judge(free, [0.0, 0.5, 1.0])
    play.judge(free_form, [0.0, 0.5, 1.0])
    assert play.counts == {"generated": 1, "scored": 1}
    assert "learner waits: no valid verdict from safety" in play.coordinator.status().waits
    play.tick(4.9)
    assert play.take(Score) == []
    play.tick(0.2)
    (again,) = play.take(Score)
    play.judge(again, [TIMEOUT])
    play.tick(5.1)
    (again,) = play.take(Score)
    assert play.take(PauseTraining) == play.take(Train) == []
    play.judge(again, [0.5])
    assert play.take(ResumeTraining) == [ResumeTraining()]
    assert len(play.take(Train)) == 1


def test_a_pause_ends_when_the_group_that_caused_it_is_dropped() -> None:
    play, safety, form = generated(config_with("pause"))
    play.judge(safety, [TIMEOUT, 0.0, 1.0])
    for _ in range(3):
        play.send(ScoringLost(form.key, form.attempt, form.fleet, form.call))
        play.tick()
        form = next(iter(play.take(Score)), form)
    assert play.dropped == {"invalid": 1}
    assert play.take(ResumeTraining) == [ResumeTraining()]


def test_a_pause_ends_in_failure_after_an_hour() -> None:
    play, safety, form = generated(config_with("pause"))
    play.judge(form, [1.0, 1.0, 1.0])
    play.judge(safety, [TIMEOUT, 0.0, 1.0])
    while play.now_s < 3600:
        play.tick(5)
        for again in play.take(Score):
            play.judge(again, [TIMEOUT] * len(again.indexes))
        assert play.take(Fail) == []
    play.tick(5)
    assert play.take(Fail)[0].exit_code == 4


def test_siblings_that_earn_the_same_are_filtered_before_the_reference_is_asked() -> None:
    play, safety, form = generated(config_with(reference={"always": True}))
    play.judge(safety, [0.5, 0.5, 0.5])
    play.judge(form, [1.0, 1.0, 1.0])
    assert play.take(ScoreReference) == []
    assert play.dropped == {"filtered": 1}


def test_the_filter_can_be_turned_off() -> None:
    play, safety, form = generated(config_with(reward={"filter_zero_variance": False}))
    play.judge(safety, [0.5, 0.5, 0.5])
    play.judge(form, [1.0, 1.0, 1.0])
    assert len(play.take(Train)) == 1


def test_a_group_is_scored_once_its_reference_logprobs_are_there() -> None:
    play, call = judged(config_with(reference={"kl_coefficient": 0.1}))
    assert play.take(Train) == []
    play.refer(call)
    (train,) = play.take(Train)
    assert train.order.groups[0].reference == "reference of 0/0 attempt 1"


def test_a_lost_reference_call_is_made_again_until_its_tries_are_spent() -> None:
    play, call = judged(config_with(reference={"kl_coefficient": 0.1}))
    for _ in range(2):
        play.send(ReferenceLost(call.key, call.attempt, call.call))
        play.tick()
        (call,) = play.take(ScoreReference)
    assert call.call == 3
    play.send(ReferenceLost(call.key, call.attempt, call.call))
    assert play.dropped == {"failed": 1}


def test_a_late_reference_answer_is_released_and_a_doubled_one_is_kept() -> None:
    play, call = judged(config_with(reference={"kl_coefficient": 0.1}))
    play.tick(661)
    (again,) = play.take(ScoreReference)
    play.refer(call)
    assert play.take(Release) == [Release(("reference of 0/0 attempt 1",))]
    play.refer(again)
    play.refer(again)
    assert play.take(Release) == []
    assert play.coordinator.status().late_results == 2


def test_a_lost_score_is_asked_again_and_ends_as_invalid_when_it_keeps_being_lost() -> None:
    play, safety, _ = generated(config_with("drop_group"))
    for call in (1, 2):
        assert safety.call == call
        play.send(ScoringLost(safety.key, safety.attempt, safety.fleet, safety.call))
        play.tick()
        (safety,) = play.take(Score)
    assert play.dropped == {}
    play.send(ScoringLost(safety.key, safety.attempt, safety.fleet, safety.call))
    assert play.dropped == {"invalid": 1}
    assert "INVALID(unavailable)" in play.transitions[-1].detail


def test_a_score_without_an_answer_is_asked_again_after_its_deadline() -> None:
    play, safety, form = generated(config_with())
    play.judge(form, [1.0, 1.0, 1.0])
    play.tick(89)  # 30 s of the verifier and 60 s of grace
    assert play.take(Score) == []
    play.tick(2)
    (again,) = play.take(Score)
    assert again.call == 2
    play.judge(safety, [0.0, 0.5, 1.0])
    assert play.take(Train) == []
    play.judge(again, [1.0, 0.5, 0.0])
    (train,) = play.take(Train)
    assert train.order.groups[0].rewards == (1.5, 1.0, 0.5)


@pytest.mark.parametrize("fault", ["too few", "wrong sample", "wrong principle"])
def test_an_answer_that_does_not_fit_the_question_is_malformed(fault: str) -> None:
    play, safety, form = generated(config_with("drop_group"))
    good = [verdict(safety, i, 0.5) for i in range(3)]
    answers = {
        "too few": good[:2],
        "wrong sample": [good[1], good[0], good[2]],
        "wrong principle": [verdict(form, i, 0.5) for i in range(3)],
    }
    play.send(VerdictsReady(safety.key, 1, safety.fleet, safety.call, tuple(answers[fault])))
    assert play.dropped == {"invalid": 1}
    assert "INVALID(malformed)" in play.transitions[-3].detail
