"""Interrupted leases, stragglers and leaving engines, as the coordinator handles them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.lease_desk import MAX_INTERRUPTS, MIN_TIMES
from cluster.protocol import (
    ROLLOUT,
    ActorLost,
    EngineLeaving,
    Finish,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    GroupInterrupted,
    InterruptLease,
    LoadWeights,
    Publish,
    Release,
    StepCommitted,
    Train,
    WeightsPublished,
)
from safeladder.config import Config
from safeladder.partials import InterruptCause, PartialHeader
from safeladder.records import GenerationFailure, GroupKey, StepReport
from tests.cluster.coordinator_play import Play, header, keys, make_config


def stop(
    play: Play,
    grant: GrantLease,
    num_tokens: int,
    version: int = 0,
    *,
    cause: InterruptCause = "deadline",
) -> str | None:
    """Answer a lease with what is there; the handle of the payload."""
    lease = grant.lease
    payload = f"{lease.key} part {lease.attempt}" if num_tokens else None
    part = PartialHeader(
        key=lease.key, attempt=lease.attempt, fence=lease.fence, engine=grant.engine, cause=cause,
        num_tokens=num_tokens, min_version=version if num_tokens else None, generate_s=1.0,
    )  # fmt: skip
    play.send(GroupInterrupted(part, payload))
    return payload


def one_by_one(**rollout: Any) -> Config:
    """One group at a time, and only one is needed."""
    return make_config(
        run={"steps": 1},
        rollout={"max_concurrent_groups": 1, **rollout},
        schedule={"groups_per_step": 1, "max_staleness": 1},
    )


def released(play: Play) -> list[str]:
    return [payload for command in play.take(Release) for payload in command.payloads]


def test_a_lease_that_is_stopped_at_its_deadline_goes_on_from_its_tokens() -> None:
    play = Play(one_by_one())
    (grant,) = play.take(GrantLease)
    assert grant.lease.is_interruptible
    assert grant.lease.begun is None
    payload = stop(play, grant, 5)
    (again,) = play.take(GrantLease)
    assert (again.lease.key, again.lease.attempt) == (grant.lease.key, 2)
    assert again.lease.begun == payload
    status = play.coordinator.status()
    assert (status.continued, status.failed_attempts) == (1, 0)
    assert released(play) == []
    play.generate(again)
    assert released(play) == [payload]
    states = [(t.target.value, t.attempt) for t in play.transitions]
    assert states == [
        ("pending", 1), ("leased", 1), ("pending", 1), ("leased", 2), ("generated", 2),
    ]  # fmt: skip
    assert play.transitions[2].detail == "interrupted (deadline): 5 tokens so far"


def test_a_deadline_without_a_new_token_is_a_failed_attempt() -> None:
    play = Play(one_by_one(max_attempts=2))
    (grant,) = play.take(GrantLease)
    stop(play, grant, 5)
    (grant,) = play.take(GrantLease)
    stop(play, grant, 5)  # as many as before
    (grant,) = play.take(GrantLease)
    assert grant.lease.begun is None
    assert play.coordinator.status().failed_attempts == 1
    assert sorted(released(play)) == ["0/0 part 1", "0/0 part 2"]
    stop(play, grant, 0)
    assert play.dropped == {"failed": 1}


def test_a_group_cannot_be_interrupted_for_ever() -> None:
    play = Play(one_by_one(max_attempts=2))
    num_leases = 0
    while not play.dropped.get("failed"):
        (grant,) = play.take(GrantLease)
        num_leases += 1
        stop(play, grant, 10 * num_leases)
    assert num_leases == 2 * (MAX_INTERRUPTS + 1)


@pytest.mark.parametrize("how", ["engine lost", "failed", "no answer"])
def test_after_a_failure_a_group_starts_anew_and_lets_its_tokens_go(how: str) -> None:
    play = Play(one_by_one(), engines=2)
    (grant,) = play.take(GrantLease)
    payload = stop(play, grant, 5)
    (again,) = play.take(GrantLease)
    if how == "engine lost":
        play.send(ActorLost(ROLLOUT, again.engine))
    elif how == "failed":
        lease = again.lease
        failure = GenerationFailure.of(lease, again.engine, "engine_error", "", retryable=True)
        play.send(GenerationFailed(failure))
    else:
        play.tick(1000.0)
    (third,) = play.take(GrantLease)
    assert (third.lease.attempt, third.lease.begun) == (3, None)
    assert released(play) == [payload]


def test_a_late_or_doubled_interruption_changes_nothing() -> None:
    play = Play(one_by_one())
    (grant,) = play.take(GrantLease)
    payload = stop(play, grant, 5)
    stop(play, grant, 5)  # the same one again: its payload is in use
    assert released(play) == []
    (again,) = play.take(GrantLease)
    play.generate(again)
    assert released(play) == [payload]
    late = replace(again, lease=replace(again.lease, attempt=7))
    assert stop(play, late, 9) in released(play)
    assert play.coordinator.status().late_results == 2
    assert play.counts == {"generated": 1}


def test_an_interrupted_group_goes_to_another_engine_if_one_has_room() -> None:
    play = Play(make_config(run={"steps": 1}, schedule={"groups_per_step": 1}), engines=3)
    (grant,) = play.take(GrantLease)
    for num_tokens in (5, 10, 15):
        stop(play, grant, num_tokens)
        (again,) = play.take(GrantLease)
        assert again.engine != grant.engine
        grant = again
    for name in {f"rollout-{i}" for i in range(3)} - {grant.engine}:
        play.send(ActorLost(ROLLOUT, name))
    stop(play, grant, 20)
    (again,) = play.take(GrantLease)
    assert again.engine == grant.engine


def overtaken(max_staleness: int) -> tuple[Play, GrantLease]:
    """Group 0 is still out at version 2, since others were trained before it."""
    config = make_config(
        run={"steps": 9}, schedule={"groups_per_step": 1, "max_staleness": max_staleness}
    )
    play = Play(config)
    slow, *grants = play.take(GrantLease)
    for step in (1, 2):
        play.generate(grants.pop(0), version=step - 1)
        play.score_all()
        play.commit()
        play.take(Publish)
        play.publish(step, "rollout-0")
        grants += play.take(GrantLease)
    return play, slow


def test_a_partial_group_that_would_be_too_old_when_trained_starts_anew() -> None:
    play, slow = overtaken(max_staleness=1)
    payload = stop(play, slow, 5)
    again = next(g for g in play.take(GrantLease) if g.lease.key == slow.lease.key)
    assert again.lease.begun is None
    assert payload in released(play)
    status = play.coordinator.status()
    assert (status.begun_anew, status.continued, status.failed_attempts) == (1, 0, 0)


def test_a_partial_group_that_is_trained_within_the_bound_goes_on() -> None:
    play, slow = overtaken(max_staleness=2)
    payload = stop(play, slow, 5)
    again = next(g for g in play.take(GrantLease) if g.lease.key == slow.lease.key)
    assert again.lease.begun == payload
    play.generate(again, version=0)  # its oldest token
    play.score_all()
    (train,) = play.take(Train)
    assert [g.key for g in train.order.groups] == [GroupKey(0, 0)]


def test_a_running_step_counts_for_the_age_of_a_partial_group() -> None:
    play, slow = overtaken(max_staleness=2)
    play.take(LoadWeights)
    other = GrantLease(slow.engine, replace(slow.lease, key=GroupKey(0, 3)))
    play.generate(other, version=2)
    play.score_all()
    assert len(play.take(Train)) == 1  # step 3 runs: group 0 is trained in step 4 at best
    stop(play, slow, 5)
    again = next(g for g in play.take(GrantLease) if g.lease.key == slow.lease.key)
    assert again.lease.begun is None


# ---- stragglers ----------------------------------------------------------------------------------


def with_a_straggler(factor: float | None, **engines: int) -> tuple[Play, GrantLease]:
    """All groups but the first took a second; engines of these names and capacities."""
    num = MIN_TIMES + 1
    config = make_config(
        run={"steps": 1},
        rollout={"straggler_factor": factor},
        schedule={"groups_per_step": num, "max_staleness": 0},
    )
    play = Play(config, engines=0)
    for name, capacity in engines.items():
        play.join_engine(name, version=0, capacity=capacity)
    slow, *grants = play.take(GrantLease)
    while grants:
        play.generate(grants.pop())
        grants += play.take(GrantLease)
    return play, slow


def test_a_straggler_moves_to_an_engine_with_room() -> None:
    play, slow = with_a_straggler(3.0, first=1, second=2)
    play.tick(2.9)
    assert play.take(InterruptLease) == []
    play.tick(0.2)
    (command,) = play.take(InterruptLease)
    assert (command.engine, command.key, command.attempt) == (slow.engine, slow.lease.key, 1)
    play.tick(1.0)
    assert play.take(InterruptLease) == []  # asked once
    stop(play, slow, 5, cause="asked")
    (again,) = play.take(GrantLease)
    assert again.engine != slow.engine
    assert again.lease.begun == "0/0 part 1"
    assert play.coordinator.status().failed_attempts == 0


def test_a_group_that_is_slow_everywhere_stays_where_it_is_in_the_end() -> None:
    play, grant = with_a_straggler(3.0, first=1, second=1)
    num_moves = 0
    for _ in range(5):
        play.tick(10.0)
        for _ in play.take(InterruptLease):
            num_moves += 1
            stop(play, grant, 5 * num_moves, cause="asked")
            (grant,) = play.take(GrantLease)
    assert num_moves == 2


@pytest.mark.parametrize(
    ("factor", "engines"),
    [(None, {"first": 1, "second": 1}), (3.0, {"first": 1}), (3.0, {"first": 9})],
)
def test_nobody_moves_when_it_is_off_or_there_is_nowhere_to_go(
    factor: float | None, engines: dict[str, int]
) -> None:
    play, _ = with_a_straggler(factor, **engines)
    play.tick(100.0)
    assert play.take(InterruptLease) == []


def test_no_more_groups_move_than_there_is_room_for() -> None:
    config = make_config(
        run={"steps": 1},
        rollout={"straggler_factor": 2.0},
        schedule={"groups_per_step": MIN_TIMES + 4, "max_staleness": 0},
    )
    play = Play(config, engines=0)
    play.join_engine("first", version=0, capacity=MIN_TIMES + 4)
    for grant in play.take(GrantLease)[4:]:
        play.generate(grant)
    play.join_engine("second", version=0, capacity=2)
    play.tick(10.0)
    play.tick(10.0)
    assert keys(play.take(InterruptLease)) == [0, 1]


# ---- leaving engines -----------------------------------------------------------------------------


def test_a_leaving_engine_hands_its_groups_over_and_gets_nothing_more() -> None:
    play = Play(make_config(), engines=1)
    grants = play.take(GrantLease)
    play.join_engine("rollout-1", version=0, capacity=3)
    play.send(EngineLeaving("rollout-0"), EngineLeaving("rollout-0"))
    commands = play.take(InterruptLease)
    assert keys(commands) == keys(grants)
    assert {c.engine for c in commands} == {"rollout-0"}
    for k, grant in enumerate(grants):
        stop(play, grant, k, cause="asked")
    again = play.take(GrantLease)
    assert {g.engine for g in again} == {"rollout-1"}
    assert [g.lease.begun for g in again] == [None, "0/1 part 1", "0/2 part 1"]
    assert [e.leases for e in play.coordinator.status().engines] == [0, 3]  # one waits
    play.publish(1, "rollout-1")
    assert [c.engine for c in play.take(LoadWeights)] == ["rollout-1"]
    assert play.coordinator.status().failed_attempts == 0


def test_a_deterministic_run_interrupts_nothing() -> None:
    config = make_config(
        run={"deterministic": True},
        rollout={"engine": "transformers"},
        schedule={"max_staleness": 0},
    )
    play = Play(config)
    grants = play.take(GrantLease)
    assert not any(g.lease.is_interruptible for g in grants)
    play.send(EngineLeaving("rollout-0"))
    play.tick(100.0)
    assert play.take(InterruptLease) == []


@pytest.mark.parametrize("key", ["straggler_factor", "oversample"])
def test_a_deterministic_run_refuses_what_makes_it_a_matter_of_chance(key: str) -> None:
    with pytest.raises(ValueError, match=f"rollout.{key}"):
        make_config(
            run={"deterministic": True},
            rollout={"engine": "transformers", key: 2},
            schedule={"max_staleness": 0},
        )


# ---- surplus -------------------------------------------------------------------------------------


def test_surplus_samples_are_asked_for_and_a_group_has_its_size() -> None:
    play = Play(one_by_one(oversample=3))
    (grant,) = play.take(GrantLease)
    assert (grant.lease.sampling.num_samples, grant.lease.surplus) == (5, 3)
    made = replace(header(grant.lease, grant.engine, 0, size=2), stopped=(4, 5, 6))
    play.send(GroupGenerated(made, "payload"))
    assert play.counts == {"generated": 1}


# ---- nobody waits for what it does not need ------------------------------------------------------


def test_the_learner_starts_with_the_groups_it_needs_whatever_older_one_is_still_out() -> None:
    play = Play()
    slow, *others = play.take(GrantLease)
    for grant in others[:2]:
        play.generate(grant)
    play.score_all()
    (train,) = play.take(Train)
    assert slow.lease.key < min(g.key for g in train.order.groups)
    assert play.counts["leased"] == 2


def test_the_run_ends_with_its_last_step_and_nothing_is_generated_beyond_it() -> None:
    """Admission stops at the groups of the last step, so that there is never any surplus to wait
    for; a dropped group is replaced, no more."""
    play = Play()
    num_leased = 0
    for step in (1, 2, 3):
        while not play.take(Train):
            grants = play.take(GrantLease)
            num_leased += len(grants)
            for grant in grants:
                play.generate(grant, version=step - 1)
            play.score_all()
        play.send(StepCommitted(StepReport(step=step, version=step, metrics={}, seconds=1.0)))
        play.publish(step, "rollout-0")
    assert num_leased == 6
    assert play.take(GrantLease) == []
    assert len(play.take(Finish)) == 1
    assert play.counts == {"trained": 6}


def test_the_run_ends_though_an_engine_that_leaves_never_serves_the_last_version() -> None:
    play = Play(one_by_one(), engines=2)
    (grant,) = play.take(GrantLease)
    (other,) = {"rollout-0", "rollout-1"} - {grant.engine}
    play.send(EngineLeaving(other))
    play.generate(grant)
    play.score_all()
    play.commit()
    play.send(WeightsPublished(1))
    play.publish(1, grant.engine)
    assert len(play.take(Finish)) == 1
