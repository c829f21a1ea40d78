from dataclasses import replace

import pytest

from cluster.coordinator import Coordinator
from cluster.engines import LOAD_RETRY_S, MAX_SHORT_LOADS
from cluster.protocol import (
    ROLLOUT,
    ActorLost,
    Alert,
    EngineServing,
    Fail,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    LoadWeights,
    PayloadLost,
    Release,
    Score,
    StepCommitted,
    StepLost,
    Tick,
    Train,
    WeightsPublished,
)
from cluster.transitions import LedgerSnapshot, PendingGroup
from safeladder.records import GenerationFailure, GroupKey, InvalidCause, StepReport
from tests.cluster.coordinator_play import Play, header, keys, make_config

ONE = {"schedule": {"groups_per_step": 1, "max_staleness": 0}}


def failed(grant: GrantLease, *, retryable: bool = True) -> GenerationFailed:
    return GenerationFailed(
        GenerationFailure(
            key=grant.lease.key,
            attempt=grant.lease.attempt,
            fence=grant.lease.fence,
            engine=grant.engine,
            cause="engine_error",
            detail="it broke",
            retryable=retryable,
        )
    )


def committed(step: int) -> StepCommitted:
    return StepCommitted(StepReport(step=step, version=step, metrics={}, seconds=1.0))


def test_the_leases_of_a_lost_engine_go_to_another_one_before_new_groups() -> None:
    play = Play(make_config(rollout={"max_concurrent_groups": 2}), engines=2)
    grants = play.take(GrantLease)
    dead = [g for g in grants if g.engine == "rollout-0"]
    play.send(ActorLost(ROLLOUT, "rollout-0"))
    play.generate(next(g for g in grants if g.engine == "rollout-1"))
    (again,) = play.take(GrantLease)
    assert (again.engine, again.lease.key, again.lease.attempt) == (
        "rollout-1", dead[0].lease.key, 2,
    )  # fmt: skip


def test_an_engine_that_comes_back_under_its_name_has_lost_its_leases() -> None:
    play = Play(make_config(**ONE))
    play.take(GrantLease)
    play.join_engine("rollout-0", version=0)
    assert play.take(GrantLease)[0].lease.attempt == 2


def test_a_late_answer_never_settles_a_newer_attempt() -> None:
    play = Play(make_config(**ONE), engines=2)
    (first,) = play.take(GrantLease)
    play.send(ActorLost(ROLLOUT, first.engine))
    (second,) = play.take(GrantLease)
    play.generate(first)
    assert play.take(Score) == []
    assert play.counts == {"leased": 1}
    assert play.coordinator.status().late_results == 1
    assert play.take(Release) == [Release(("0/0 attempt 1",))]
    play.generate(second)
    assert play.take(Score)[0].payload == "0/0 attempt 2"


def test_an_answer_under_an_older_fence_is_thrown_away() -> None:
    play = Play(make_config(**ONE), fence=5)
    (grant,) = play.take(GrantLease)
    play.send(GroupGenerated(header(replace(grant.lease, fence=4), "rollout-0", 0), "ghost"))
    assert play.counts == {"leased": 1}
    assert play.take(Release) == [Release(("ghost",))]


def test_a_doubled_answer_is_counted_and_its_payload_is_kept() -> None:
    play = Play(make_config(**ONE))
    (grant,) = play.take(GrantLease)
    play.generate(grant)
    play.generate(grant)
    assert len(play.take(Score)) == 1
    assert play.take(Release) == []
    assert play.coordinator.status().late_results == 1


def test_a_lease_that_is_not_answered_is_given_out_again_after_its_deadline() -> None:
    play = Play(make_config(rollout={"group_deadline_s": 100}, **ONE))
    play.take(GrantLease)
    play.tick(159)
    assert play.take(GrantLease) == []
    play.tick(2)
    assert play.take(GrantLease)[0].lease.attempt == 2
    assert "gave no answer" in play.take(Alert)[0].text


def test_a_prompt_that_kills_engines_is_given_up_after_its_attempts() -> None:
    play = Play(make_config(**ONE), engines=9)
    for attempt in (1, 2, 3):
        (grant,) = play.take(GrantLease)
        assert (grant.lease.key.ordinal, grant.lease.attempt) == (0, attempt)
        play.send(ActorLost(ROLLOUT, grant.engine))
    assert play.dropped == {"failed": 1}
    assert keys(play.take(GrantLease)) == [1]


def test_restarts_of_the_driver_do_not_count_as_failed_attempts() -> None:
    key = GroupKey(0, 0)
    restored = LedgerSnapshot(pending=(PendingGroup(key, 7),), last_key=key)
    play = Play(make_config(**ONE), restored=restored)
    play.send(failed(play.take(GrantLease)[0]))
    assert play.take(GrantLease)[0].lease.attempt == 8
    assert play.dropped == {}


def test_a_failure_that_cannot_get_better_drops_the_group_at_once() -> None:
    play = Play(make_config(**ONE))
    play.send(failed(play.take(GrantLease)[0], retryable=False))
    assert play.dropped == {"failed": 1}
    assert any("engine_error: it broke" in t.detail for t in play.transitions)


def test_a_retryable_failure_frees_the_slot_for_the_next_attempt() -> None:
    play = Play(make_config(rollout={"max_concurrent_groups": 1}, **ONE))
    play.send(failed(play.take(GrantLease)[0]))
    assert play.take(GrantLease)[0].lease.attempt == 2


def test_a_group_of_the_wrong_size_is_a_failed_attempt() -> None:
    play = Play(make_config(**ONE))
    (grant,) = play.take(GrantLease)
    play.send(GroupGenerated(header(grant.lease, grant.engine, 0, size=1), "short"))
    assert play.take(Release) == [Release(("short",))]
    assert play.take(GrantLease)[0].lease.attempt == 2


@pytest.mark.parametrize("state", ["generated", "scored"])
def test_a_group_whose_payload_is_lost_begins_anew(state: str) -> None:
    play = Play()
    grant = play.take(GrantLease)[0]
    play.generate(grant)
    if state == "scored":
        play.score_all()
    assert play.counts[state] == 1
    play.send(PayloadLost(grant.lease.key, 1))
    assert state not in play.counts
    play.tick()
    (again,) = play.take(GrantLease)
    assert (again.lease.key, again.lease.attempt) == (grant.lease.key, 2)


def test_a_step_that_lost_a_payload_is_ordered_again_with_another_group() -> None:
    play = Play(make_config(schedule={"groups_per_step": 2, "max_staleness": 1}))
    play.fill_step()
    (order,) = play.take(Train)
    lost = order.order.groups[1]
    play.send(PayloadLost(lost.key, lost.attempt))
    play.tick()
    (again,) = play.take(Train)
    assert again.order.step == 1
    assert [g.key.ordinal for g in again.order.groups] == [0, 2]
    play.send(committed(1))
    assert play.counts["trained"] == 2


def test_a_step_that_lost_several_payloads_waits_until_it_is_full_again() -> None:
    play = Play(make_config(schedule={"groups_per_step": 3, "max_staleness": 0}))
    play.fill_step()
    (order,) = play.take(Train)
    play.send(*(PayloadLost(g.key, g.attempt) for g in order.order.groups[:2]))
    play.tick()
    assert play.take(Train) == []
    play.fill_step()
    (again,) = play.take(Train)
    assert [(g.key.ordinal, g.attempt) for g in again.order.groups] == [(0, 2), (1, 2), (2, 1)]


def test_news_of_a_payload_of_an_older_attempt_is_late() -> None:
    play = Play(make_config(**ONE))
    (grant,) = play.take(GrantLease)
    play.generate(grant)
    play.send(PayloadLost(grant.lease.key, 1), Tick(0.0))
    play.take(GrantLease)
    play.send(PayloadLost(grant.lease.key, 1))
    assert play.counts == {"leased": 1}
    assert play.coordinator.status().late_results == 1


def test_a_commit_of_a_step_that_does_not_run_is_late() -> None:
    play = Play()
    play.send(committed(1))
    play.fill_step()
    play.commit()
    play.send(committed(1), committed(7))
    assert play.coordinator.status().late_results == 3
    assert play.coordinator.status().version == 1


def test_a_version_that_is_published_twice_is_late_the_second_time() -> None:
    play = Play()
    play.fill_step()
    play.commit()
    play.send(WeightsPublished(1), WeightsPublished(1))
    assert play.coordinator.status().late_results == 1


def test_a_lost_step_fails_the_run_and_names_the_way_out() -> None:
    play = Play()
    play.fill_step()
    play.send(StepLost(1))
    (fail,) = play.take(Fail)
    assert fail.exit_code == 1
    assert "resume" in fail.text


@pytest.mark.parametrize(("reason", "exit_code"), [("filtered", 1), ("invalid", 4)])
def test_a_run_that_drops_nearly_everything_alerts_and_then_fails(
    reason: str, exit_code: int
) -> None:
    judge = {"verifier": "a:B", "on_invalid": "drop_group"}
    no_pause = {"breaker": {"max_invalid_share": 1.0}}
    play = Play(make_config(principles={"safety": judge}, reward=no_pause, **ONE))
    answer = 0.5 if reason == "filtered" else InvalidCause.ERROR
    for num_drops in range(1, 51):
        (grant,) = play.take(GrantLease)
        play.generate(grant)
        (call,) = play.take(Score)
        play.judge(call, [answer, answer])
        assert play.dropped == {reason: num_drops}
        assert len(play.take(Alert)) == (num_drops == 10)
    (fail,) = play.take(Fail)
    assert fail.exit_code == exit_code
    assert f"50 groups were dropped since the last step (50 {reason})" in fail.text


def test_drops_are_counted_from_the_last_step_on() -> None:
    play = Play(make_config(run={"steps": 50}, **ONE))
    for step in range(1, 20):
        for _ in range(5):
            (grant,) = play.take(GrantLease)
            play.generate(grant, version=step - 1)
            (call,) = play.take(Score)
            play.judge(call, [0.5, 0.5])
        play.fill_step(version=step - 1)
        play.commit()
        play.publish(step, "rollout-0")
    assert play.dropped == {"filtered": 95}
    assert play.take(Alert) == play.take(Fail) == []


def test_equal_events_give_equal_commands() -> None:
    def commands() -> str:
        play = Play(engines=2)
        for grant in play.take(GrantLease)[::-1]:
            play.generate(grant)
        calls = play.take(Score)
        for call in calls:
            play.judge(call, [0.0, 1.0])
        return repr((calls, play.open, play.transitions))

    assert commands() == commands()


def test_an_event_that_does_not_exist_is_refused() -> None:
    coordinator: Coordinator = Play().coordinator
    with pytest.raises(KeyError):
        coordinator.handle("nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_generating", [False, True])
def test_a_version_that_nobody_can_load_ends_the_run_once_nothing_else_moves(
    is_generating: bool,
) -> None:
    """Its bytes are lost, and while it is the newest nobody publishes another."""
    bound = {"groups_per_step": 1, "max_staleness": int(is_generating)}
    play = Play(make_config(schedule=bound), engines=2)
    play.generate(play.take(GrantLease)[0])
    play.score_all()
    play.commit()
    play.send(WeightsPublished(1))
    for _ in range(MAX_SHORT_LOADS):
        assert play.take(Fail) == []
        play.tick(LOAD_RETRY_S)
        for load in play.take(LoadWeights):
            play.send(EngineServing(load.engine, 0))
    failed = play.take(Fail)
    assert bool(failed) != is_generating
    assert all("no engine can load version 1" in fail.text for fail in failed)
