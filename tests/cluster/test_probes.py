"""Bad samples cost their own groups and no time; an outage costs time and no groups."""

from __future__ import annotations

import pytest

from cluster.panel import Panel
from cluster.protocol import (
    PROBE_ATTEMPT,
    Fail,
    GrantLease,
    PanelChanged,
    PauseTraining,
    PayloadLost,
    ResumeTraining,
    Score,
    ScoringLost,
    Train,
)
from safeladder.config import Config
from safeladder.records import InvalidCause
from tests.cluster.coordinator_play import Judgement, Play, make_config

TIMEOUT = InvalidCause.TIMEOUT
BAD: list[Judgement] = [InvalidCause.MALFORMED] * 8
GOOD: list[Judgement] = [index / 8 for index in range(8)]


def config(policy: str = "drop_group", **reward: object) -> Config:
    """The breaker as it is by default, groups of 8, 16 of them at a time."""
    return make_config(
        run={"name": "x", "steps": 100},
        principles={"safety": {"verifier": "a:B", "on_invalid": policy}},
        rollout={"group_size": 8, "max_concurrent_groups": 1000},
        reward=reward,
        schedule={"groups_per_step": 8, "max_staleness": 1},
    )


def begun(num_bad: int, policy: str = "drop_group") -> tuple[Play, list[Score]]:
    """16 groups are generated, all but the last ``num_bad`` are judged; the calls of those."""
    play = Play(config(policy))
    for grant in play.take(GrantLease):
        play.generate(grant)
    calls = play.take(Score)
    for call in calls[:-num_bad]:
        play.judge(call, GOOD)
    play.take(Train)
    return play, calls[-num_bad:]


def probes(calls: list[Score]) -> list[Score]:
    return [call for call in calls if call.is_probe]


def waiting(calls: list[Score]) -> list[Score]:
    return [call for call in calls if not call.is_probe]


@pytest.mark.parametrize("policy", ["drop_group", "drop_sample", "retry"])
def test_a_group_that_cannot_be_judged_is_dropped_at_once_if_the_verifier_works(
    policy: str,
) -> None:
    play, (bad,) = begun(1, policy)
    play.judge(bad, BAD, retryable=False)  # 8 of 128
    assert len(play.take(PauseTraining)) == 1
    play.tick(0.1)
    (probe,) = play.take(Score)
    assert probe.is_probe
    assert len(probe.indexes) == 1
    assert probe.key != bad.key
    assert probe.asked_as > PROBE_ATTEMPT  # a service does not answer it from memory
    play.judge(probe, [0.5])
    play.tick(0.1)
    (again,) = play.take(Score)
    assert (again.key, again.asked_as) == (bad.key, bad.attempt)
    play.judge(again, BAD, retryable=False)
    assert play.dropped == {"invalid": 1}
    assert len(play.take(ResumeTraining)) == 1


def test_a_probe_changes_nothing_in_the_group_that_it_asks_for() -> None:
    play, (bad,) = begun(1)
    play.judge(bad, BAD)
    play.tick(0.1)
    (probe,) = play.take(Score)
    group = play.coordinator._groups[probe.key]
    assert group.scores is not None
    before = group.scores.audit(), group.rewards
    play.judge(probe, [0.123])
    assert (group.scores.audit(), group.rewards) == before


def test_bad_samples_never_count_as_an_outage_however_often_they_are_asked_again() -> None:
    play, bad = begun(3)
    for call in bad:
        play.judge(call, BAD)
    for _ in range(50):
        play.tick(0.1)
        for call in play.take(Score):
            play.judge(call, GOOD[:1] if call.is_probe else BAD)
    assert play.dropped == {"invalid": 3}
    assert play.take(Fail) == []


def test_an_outage_costs_no_group_while_calls_hang_then_fail_then_come_back() -> None:
    play, bad = begun(3)
    lost: list[Judgement] = [TIMEOUT] * 8
    for call in bad:
        play.judge(call, lost)
    pending: list[Score] = []
    for second in range(60):  # calls hang, each for 30 s, then fail at once
        play.tick(1)
        pending += play.take(Score)
        if second in (30, 59) or second > 30:
            for call in pending:
                play.judge(call, lost[: len(call.indexes)])
            pending = []
    play.tick(6)
    hanging = play.take(Score)
    assert len(waiting(hanging)) == 3
    (probe,) = probes(hanging)
    play.judge(probe, [0.5])  # the verifier is back, the others' calls still hang
    for call in waiting(hanging):
        play.judge(call, lost)
    play.tick(0.1)
    again = play.take(Score)
    assert sorted(call.key for call in again) == sorted(call.key for call in bad)
    for call in again:
        play.judge(call, GOOD)
    assert play.dropped == {}
    assert len(play.take(ResumeTraining)) == 1


def test_a_good_answer_to_a_call_from_before_the_outage_proves_nothing() -> None:
    play, (early, *bad) = begun(3)
    for call in bad:
        play.judge(call, [TIMEOUT] * 8)
    play.judge(early, GOOD)
    play.tick(5.1)
    for call in play.take(Score):
        play.judge(call, [TIMEOUT] * len(call.indexes))
    assert play.dropped == {}


def test_without_a_sample_that_was_judged_well_the_groups_wait_for_their_own_answers() -> None:
    play, bad = begun(16)
    for call in bad:
        play.judge(call, [TIMEOUT] * 8)
    lost = play.dropped.get("invalid", 0)
    assert lost == 7  # 64 verdicts are needed
    for _ in range(20):
        play.tick(5)
        calls = play.take(Score)
        assert probes(calls) == []
        for call in calls:
            play.judge(call, [TIMEOUT] * 8)
    play.tick(5)
    for call in play.take(Score):
        play.judge(call, GOOD)
    assert play.dropped == {"invalid": lost}
    assert len(play.take(ResumeTraining)) == 1


def test_a_group_is_probed_by_its_own_good_samples_if_there_are_no_others() -> None:
    play = Play(
        make_config(
            principles={"safety": {"verifier": "a:B", "on_invalid": "drop_sample"}},
            rollout={"group_size": 4},
            reward={"breaker": {"min_verdicts": 4, "window": 8}},
        )
    )
    play.generate(play.take(GrantLease)[0])
    play.judge(play.take(Score)[0], [0.0, 1.0, 0.5, TIMEOUT])
    play.tick(0.1)
    (probe,) = play.take(Score)
    assert (probe.is_probe, probe.indexes) == (True, (0,))
    play.judge(probe, [0.0])
    play.tick(0.1)
    (again,) = play.take(Score)
    assert (again.indexes, again.is_probe) == ((3,), False)
    play.judge(again, [TIMEOUT])
    assert play.take(ResumeTraining) == [ResumeTraining()]
    assert play.dropped == {}


def test_a_lost_probe_is_followed_by_another_sample() -> None:
    play, (bad,) = begun(1)
    play.judge(bad, BAD)
    play.tick(0.1)
    (probe,) = play.take(Score)
    play.send(ScoringLost(probe.key, probe.attempt, probe.fleet, probe.call))
    play.tick(4)
    assert play.take(Score) == []
    play.tick(1.1)
    calls = play.take(Score)
    (other,), (again,) = probes(calls), waiting(calls)
    assert other.key != probe.key
    play.send(PayloadLost(other.key, other.attempt))  # its group is given up while it is out
    play.tick(0.1)
    (third,) = probes(play.take(Score))
    late = play.coordinator.status().late_results
    play.judge(other, [0.5])
    assert play.coordinator.status().late_results == late + 1
    play.judge(third, [0.5])
    play.judge(again, BAD)  # went out while the breaker was open
    play.tick(0.1)
    for call in waiting(play.take(Score)):
        play.judge(call, BAD)
    assert play.dropped == {"invalid": 1}


def test_a_swap_of_the_breakers_rule_reaches_a_verifier_that_is_kept() -> None:
    play, (bad,) = begun(1)
    play.judge(bad, BAD)
    wanted = config(breaker={"max_invalid_share": 1.0})
    play.send(PanelChanged(Panel.first(play.config).changed(wanted, kept={"safety"})))
    play.tick(0.1)
    (again,) = play.take(Score)
    play.judge(again, BAD)
    assert play.dropped == {"invalid": 1}
