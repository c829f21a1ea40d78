from cluster.panel import verifier_fleet
from cluster.protocol import (
    REFERENCE,
    ActorJoined,
    ActorLost,
    GrantLease,
    Score,
    ScoreReference,
    ScoringLost,
    Train,
    VerdictsTaken,
)
from safeladder.records import InvalidCause
from tests.cluster.coordinator_play import (
    Judgement,
    Play,
    config_with,
    generated,
    judged,
    keys,
    make_config,
)

TIMEOUT = InvalidCause.TIMEOUT
SAFETY = verifier_fleet("safety")


def many(num_groups: int) -> tuple[Play, list[GrantLease]]:
    """Leased groups of one principle whose verifiers have not joined."""
    config = make_config(
        schedule={"groups_per_step": num_groups, "max_staleness": 0}, run={"steps": 1}
    )
    play = Play(config, start=False)
    play.join_engine("rollout-0", version=0)
    play.tick()
    return play, play.take(GrantLease)


def test_calls_wait_for_a_slot_in_order() -> None:
    play, grants = many(3)
    for grant in grants:
        play.generate(grant)
    assert play.take(Score) == []
    assert f"3 calls wait for {SAFETY}: no actor is up" in play.coordinator.status().waits
    play.send(ActorJoined(SAFETY, "v-0", 2))
    calls = play.take(Score)
    assert keys(calls) == [0, 1]
    play.judge(calls[1], [0.0, 1.0])
    assert keys(play.take(Score)) == [2]


def test_a_calls_deadline_starts_when_it_is_sent() -> None:
    play, grants = many(1)
    play.generate(grants[0])
    play.tick(500)
    play.send(ActorJoined(SAFETY, "v-0", 1))
    (call,) = play.take(Score)
    play.tick(80)
    play.judge(call, [0.0, 1.0])
    assert play.coordinator.status().late_results == 0
    assert len(play.take(Train)) == 1


def test_when_the_last_verifier_dies_its_calls_wait_for_the_next_one() -> None:
    play, grants = many(2)
    play.send(ActorJoined(SAFETY, "v-0", 9), ActorJoined(SAFETY, "v-1", 9))
    for grant in grants:
        play.generate(grant)
    lost = play.take(Score)
    play.send(ActorLost(SAFETY, "v-0"))
    assert play.take(Score) == []  # v-1 may hold them
    play.send(ActorLost(SAFETY, "v-1"))
    play.tick(10)
    assert play.take(Score) == []
    play.send(ActorJoined(SAFETY, "v-2", 9))
    again = play.take(Score)
    assert [call.call for call in again] == [2, 2]
    play.judge(lost[0], [0.0, 1.0])
    assert play.coordinator.status().late_results == 1


def test_the_log_has_what_counts_and_nothing_that_comes_late() -> None:
    play, lost, _ = generated(config_with("drop_sample"))
    play.send(ScoringLost(lost.key, lost.attempt, lost.fleet, lost.call))
    play.judge(lost, [0.0, 0.5, 1.0])
    assert play.take(VerdictsTaken) == []
    play.tick()
    (again,) = play.take(Score)
    play.judge(again, [0.0, TIMEOUT, 1.0])
    (taken,) = play.take(VerdictsTaken)
    assert (taken.key, taken.attempt, taken.call) == (again.key, again.attempt, 2)
    assert (taken.route, taken.generation) == ("safety", 0)
    assert [one.score for one in taken.verdicts] == [0.0, None, 1.0]


def test_the_log_has_a_verdict_for_calls_that_were_lost_for_good() -> None:
    play, call, _ = generated(config_with("drop_sample"))
    for _ in range(play.config.rollout.max_attempts):
        assert play.take(VerdictsTaken) == []
        play.send(ScoringLost(call.key, call.attempt, call.fleet, call.call))
        play.tick()
        call = next(iter(play.take(Score)), call)
    (taken,) = play.take(VerdictsTaken)
    assert [one.cause for one in taken.verdicts] == [InvalidCause.UNAVAILABLE] * 3


def test_news_of_lost_calls_sends_nothing_before_the_news_of_the_dead_actor() -> None:
    play, grants = many(1)
    play.send(ActorJoined(SAFETY, "v-0", 9))
    play.generate(grants[0])
    (call,) = play.take(Score)
    play.send(ScoringLost(call.key, call.attempt, call.fleet, call.call))
    play.send(ActorLost(SAFETY, "v-0"))
    play.tick()
    assert play.take(Score) == []


def test_a_call_of_a_dropped_group_keeps_its_slot_until_it_is_answered() -> None:
    play, grants = many(2)
    play.send(ActorJoined(SAFETY, "v-0", 1))
    play.generate(grants[0])
    (call,) = play.take(Score)
    play.tick(91)
    (again,) = play.take(Score)
    play.generate(grants[1])
    assert play.take(Score) == []
    play.judge(call, [0.0, 1.0])  # late: it does not free the slot of the second call
    assert play.take(Score) == []
    play.judge(again, [0.0, 1.0])
    assert keys(play.take(Score)) == [1]


def test_a_call_that_still_waits_is_not_made_when_its_group_is_dropped() -> None:
    config = config_with("drop_group")
    play = Play(config, start=False)
    play.join_engine("rollout-0", version=0)
    play.send(ActorJoined(SAFETY, "v-0", 1))
    play.tick()
    play.generate(play.take(GrantLease)[0])
    (safety,) = play.take(Score)
    play.judge(safety, [TIMEOUT, 0.0, 1.0])
    play.send(ActorJoined(verifier_fleet("format"), "f-0", 1))
    assert play.take(Score) == []


def test_a_lost_reference_actor_is_replaced_and_its_calls_are_made_again() -> None:
    play, _ = judged(config_with(reference={"always": True}))
    play.send(ActorLost(REFERENCE, "reference-0"))
    assert play.take(ScoreReference) == []
    play.send(ActorJoined(REFERENCE, "reference-1", 2))
    (again,) = play.take(ScoreReference)
    play.refer(again)
    assert len(play.take(Train)) == 1


def test_an_invalid_verdict_never_reaches_the_learner_as_a_number() -> None:
    judgements: list[list[Judgement]] = [
        [TIMEOUT, 0.0, 1.0], [0.0, TIMEOUT, TIMEOUT], [TIMEOUT] * 3, [None, TIMEOUT, 1.0],
    ]  # fmt: skip
    for judgement in judgements:
        play, safety, form = generated(config_with("drop_sample"))
        play.judge(safety, judgement)
        play.judge(form, [1.0, 1.0, 1.0])
        for train in play.take(Train):
            rewards = train.order.groups[0].rewards
            invalid = [i for i, j in enumerate(judgement) if j is TIMEOUT]
            assert all(rewards[i] is None for i in invalid)
