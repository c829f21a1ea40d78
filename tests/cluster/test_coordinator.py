import pytest

from cluster.protocol import (
    ROLLOUT,
    ActorLost,
    Alert,
    EngineServing,
    Fail,
    Finish,
    GrantLease,
    LoadWeights,
    Publish,
    Release,
    Score,
    StepCommitted,
    Tick,
    Train,
    WeightsPublished,
)
from cluster.transitions import LedgerSnapshot, PendingGroup
from safeladder.records import GroupKey, StepReport
from tests.cluster.coordinator_play import Play, Prompts, keys, make_config


def test_leases_are_given_in_order_up_to_the_admission_limit() -> None:
    play = Play(make_config(schedule={"groups_per_step": 3, "max_staleness": 1}))
    assert keys(play.take(GrantLease)) == [0, 1, 2, 3, 4, 5]
    play.tick(60)
    assert play.take(GrantLease) == []


def test_a_lease_is_complete() -> None:
    play = Play(make_config(rollout={"temperature": 0.7, "group_deadline_s": 33}), fence=9)
    lease = play.take(GrantLease)[0].lease
    assert (lease.attempt, lease.fence, lease.deadline_s) == (1, 9, 33)
    assert lease.prompt.id == str(lease.key)
    assert (lease.sampling.num_samples, lease.sampling.temperature) == (2, 0.7)
    assert lease.sampling.seed is None


def test_at_bound_0_nothing_is_leased_until_the_engine_echoes_the_new_version() -> None:
    play = Play(make_config(schedule={"groups_per_step": 2, "max_staleness": 0}))
    play.fill_step()
    play.commit()
    assert play.take(GrantLease) == []
    play.send(WeightsPublished(1))
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 1)]
    assert play.take(GrantLease) == []
    play.send(EngineServing("rollout-0", 1))
    assert keys(play.take(GrantLease)) == [2, 3]


def test_an_engine_gets_no_lease_before_it_says_what_it_serves() -> None:
    play = Play(engines=0)
    play.join_engine("rollout-0", version=None)
    assert play.take(GrantLease) == []
    play.send(EngineServing("rollout-0", 0))
    assert len(play.take(GrantLease)) == 4


def test_an_engine_that_lags_gets_no_lease_that_the_others_may_have() -> None:
    play = Play(
        make_config(schedule={"groups_per_step": 2, "max_staleness": 0}),
        engines=2,
    )
    play.fill_step()
    play.commit()
    play.publish(1, "rollout-1")
    assert {grant.engine for grant in play.take(GrantLease)} == {"rollout-1"}


def test_leases_go_to_the_engine_with_most_free_slots_and_never_above_its_capacity() -> None:
    play = Play(engines=0)
    play.join_engine("small", version=0, capacity=1)
    play.join_engine("large", version=0, capacity=2)
    grants = play.take(GrantLease)
    assert [grant.engine for grant in grants] == ["small", "large", "large"]
    play.generate(grants[0])
    assert [grant.engine for grant in play.take(GrantLease)] == ["small"]


def test_a_dropped_group_reopens_admission() -> None:
    play = Play()
    first = play.take(GrantLease)[0]
    play.generate(first)
    (call,) = play.take(Score)
    play.judge(call, [0.5, 0.5])
    assert play.dropped == {"filtered": 1}
    assert keys(play.take(GrantLease)) == [4]


def test_a_group_goes_through_all_states_and_its_payloads_are_released_at_the_end() -> None:
    play = Play(make_config(reference={"kl_coefficient": 0.1}))
    play.fill_step()
    assert play.counts == {"scored": 2, "admitted": 2}
    order = play.commit().order
    life = [(t.target.value, t.step) for t in play.transitions if t.key == GroupKey(0, 0)]
    assert life == [
        ("pending", None), ("leased", None), ("generated", None), ("scored", None),
        ("admitted", 1), ("trained", 1),
    ]  # fmt: skip
    assert order.groups[0].reference == "reference of 0/0 attempt 1"
    assert play.take(Release)[0].payloads == ("0/0 attempt 1", "reference of 0/0 attempt 1")


def test_the_learner_takes_groups_in_lease_order_whatever_finished_first() -> None:
    play = Play(make_config(schedule={"groups_per_step": 2, "max_staleness": 2}))
    grants = play.take(GrantLease)
    play.generate(grants[5])
    play.generate(grants[3])
    play.score_all()
    (first,) = play.take(Train)
    assert [g.key.ordinal for g in first.order.groups] == [3, 5]
    for grant in (grants[4], grants[2], grants[0]):
        play.generate(grant)
    play.score_all()
    play.send(StepCommitted(StepReport(step=1, version=1, metrics={}, seconds=1.0)))
    (second,) = play.take(Train)
    assert [g.key.ordinal for g in second.order.groups] == [0, 2]


def test_in_deterministic_mode_a_step_waits_for_every_earlier_group() -> None:
    config = make_config(
        run={"deterministic": True},
        rollout={"engine": "transformers"},
        schedule={"groups_per_step": 2, "max_staleness": 0},
    )
    play = Play(config)
    first, second = play.take(GrantLease)
    play.generate(second)
    play.score_all()
    play.generate(first)
    (call,) = play.take(Score)
    play.judge(call, [0.5, 0.5])  # filtered: the third group takes its place
    (third,) = play.take(GrantLease)
    assert play.take(Train) == []
    play.generate(third)
    play.score_all()
    (train,) = play.take(Train)
    assert [g.key.ordinal for g in train.order.groups] == [1, 2]


def test_seeds_are_a_function_of_run_seed_and_key_in_deterministic_mode() -> None:
    def seeds(run_seed: int) -> list[int | None]:
        config = make_config(
            run={"deterministic": True, "seed": run_seed},
            rollout={"engine": "transformers"},
            schedule={"max_staleness": 0, "groups_per_step": 3},
        )
        return [grant.lease.sampling.seed for grant in Play(config).take(GrantLease)]

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 6


def test_a_group_older_than_the_bound_is_dropped_at_training_and_replaced() -> None:
    play = Play(make_config(schedule={"groups_per_step": 1, "max_staleness": 1}))
    slow, fast = play.take(GrantLease)
    play.generate(fast)
    play.score_all()
    play.commit()
    play.publish(1, "rollout-0")
    (third,) = play.take(GrantLease)
    play.generate(third, version=1)
    play.score_all()
    play.generate(slow)
    play.score_all()  # staleness 1: in time for step 2, but the learner is busy with it
    play.commit()
    assert play.dropped == {"stale": 1}
    play.publish(2, "rollout-0")
    assert keys(play.take(GrantLease)) == [3]


def test_a_group_that_is_too_old_already_is_not_scored() -> None:
    play = Play(make_config(schedule={"groups_per_step": 1, "max_staleness": 0}))
    (grant,) = play.take(GrantLease)
    play.generate(grant, version=-1)
    assert play.take(Score) == []
    assert play.dropped == {"stale": 1}


def test_a_version_is_published_before_the_next_step_is_ordered() -> None:
    play = Play()
    play.fill_step()
    play.commit()
    kinds = [type(c) for c in play.open if isinstance(c, Publish | Train)]
    assert kinds == [Publish, Train]


def test_every_engine_loads_the_newest_version_one_load_at_a_time() -> None:
    play = Play(engines=2)
    play.fill_step()
    play.commit()
    play.send(WeightsPublished(1))
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 1), LoadWeights("rollout-1", 1)]
    play.commit()
    play.send(WeightsPublished(2))
    assert play.take(LoadWeights) == []
    play.send(EngineServing("rollout-1", 1))
    assert play.take(LoadWeights) == [LoadWeights("rollout-1", 2)]


def test_an_engine_that_loads_slowly_holds_up_neither_the_others_nor_the_learner() -> None:
    play = Play(make_config(run={"steps": 6}), engines=2)
    play.fill_step()
    for version in range(1, 5):
        play.commit()
        play.publish(version, "rollout-0")  # rollout-1 is still at its first load
        grants = play.take(GrantLease)
        assert {grant.engine for grant in grants} == {"rollout-0"}
        for grant in grants:
            play.generate(grant, version)
        play.score_all()
    assert [load.engine for load in play.take(LoadWeights)].count("rollout-1") == 1


def test_a_load_that_failed_is_tried_again_after_a_pause() -> None:
    play = Play()
    play.fill_step()
    play.commit()
    play.send(WeightsPublished(1))
    play.take(LoadWeights)
    play.send(EngineServing("rollout-0", 0))
    assert "did not load version 1" in play.take(Alert)[0].text
    assert play.take(LoadWeights) == []
    play.tick(5)
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 1)]


def test_a_load_without_an_answer_is_asked_for_again_after_its_deadline() -> None:
    play = Play()
    play.fill_step()
    play.commit()
    play.send(WeightsPublished(1))
    play.take(LoadWeights)
    play.tick(659)
    assert play.take(LoadWeights) == []
    play.tick(2)
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 1)]


def finish_training(play: Play) -> None:
    for step in range(1, play.config.run.steps + 1):
        play.fill_step(version=step - 1)
        play.commit()
        if step < play.config.run.steps:
            play.publish(step, "rollout-0")


def test_a_run_finishes_once_its_last_version_is_served() -> None:
    play = Play()
    finish_training(play)
    assert play.counts == {"trained": 6}
    assert play.take(GrantLease) == []
    play.send(WeightsPublished(3))
    assert play.take(Finish) == []
    play.send(EngineServing("rollout-0", 3))
    assert play.take(Finish) == [Finish()]


def test_no_more_groups_are_leased_than_the_run_has_steps_for() -> None:
    play = Play(make_config(run={"steps": 1}, schedule={"max_staleness": 5}))
    assert len(play.take(GrantLease)) == 2


def test_a_run_finishes_without_an_engine_that_is_lost() -> None:
    play = Play()
    finish_training(play)
    play.send(WeightsPublished(3), ActorLost(ROLLOUT, "rollout-0"))
    assert play.take(Finish) == [Finish()]


def test_a_run_does_not_wait_for_ever_for_an_engine_to_serve_its_last_version() -> None:
    play = Play()
    finish_training(play)
    play.send(WeightsPublished(3))
    play.tick(661)
    assert play.take(Finish) == [Finish()]
    assert "never served" in play.take(Alert)[-1].text


def test_nothing_follows_the_end() -> None:
    play = Play()
    finish_training(play)
    play.publish(3, "rollout-0")
    play.open.clear()
    play.tick(1e6)
    play.send(ActorLost(ROLLOUT, "rollout-0"))
    assert play.open == []


def test_nothing_is_asked_for_before_the_first_tick() -> None:
    play = Play(start=False)
    play.join_engine("rollout-0", version=0)
    assert play.open == []
    play.send(Tick(1e9))
    assert len(play.take(GrantLease)) == 4
    play.tick(0)
    assert play.counts == {"leased": 4}


RESTORED = LedgerSnapshot(
    pending=(PendingGroup(GroupKey(0, 1), 3), PendingGroup(GroupKey(0, 5), 2)),
    trained=4,
    version=2,
    last_key=GroupKey(0, 6),
)


def test_a_resumed_run_publishes_first_and_leases_only_from_its_restored_version() -> None:
    play = Play(make_config(schedule={"max_staleness": 3}), restored=RESTORED)
    assert play.take(Publish) == [Publish(2)]
    assert play.take(GrantLease) == []
    play.send(WeightsPublished(2))
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 2)]
    play.send(EngineServing("rollout-0", 2))
    assert len(play.take(GrantLease)) == 2


def test_a_resumed_run_leases_its_pending_groups_first_and_then_new_ones() -> None:
    play = Play(make_config(run={"steps": 9}), restored=RESTORED)
    play.publish(2, "rollout-0")
    leases = [grant.lease for grant in play.take(GrantLease)]
    assert [(lease.key.ordinal, lease.attempt) for lease in leases] == [
        (1, 3), (5, 2), (7, 1), (8, 1),
    ]  # fmt: skip


def test_a_resumed_run_goes_on_with_the_next_step() -> None:
    play = Play(restored=RESTORED)
    play.publish(2, "rollout-0")
    play.fill_step(version=2)
    assert play.commit().order.step == 3
    play.publish(3, "rollout-0")
    assert play.take(Finish) == [Finish()]


def test_a_run_that_was_finished_already_finishes_again() -> None:
    play = Play(restored=LedgerSnapshot(trained=6, version=3, last_key=GroupKey(0, 5)))
    play.publish(3, "rollout-0")
    assert play.take(Finish) == [Finish()]
    assert play.take(GrantLease) == []


def test_passes_follow_each_other() -> None:
    play = Play(make_config(schedule={"max_staleness": 2}), prompts=Prompts(size=4))
    leased = [grant.lease.key for grant in play.take(GrantLease)]
    assert leased[3:] == [GroupKey(0, 3), GroupKey(1, 0), GroupKey(1, 1)]


def test_the_status_says_who_waits_for_whom() -> None:
    play = Play(make_config(principles={"safety": {"verifier": "a:B"}}), engines=0)
    status = play.coordinator.status()
    assert status.waits == (
        "learner waits for groups: 0 of 2 are scored",
        "generation waits for an engine",
    )
    play.join_engine("rollout-0", version=None)
    assert "rollout-0 is starting" in play.coordinator.status().waits


def test_the_status_counts_groups_staleness_and_versions() -> None:
    play = Play()
    play.fill_step()
    play.commit()
    play.commit()
    status = play.coordinator.status()
    assert (status.version, status.published_version) == (2, 0)
    assert status.trained_by_staleness == {0: 2, 1: 2}
    assert (status.staleness_max, status.staleness_mean) == (1, 0.5)
    assert sum(status.counts.values()) == 4
    assert status.engines[0].served_version == 0


def test_the_staleness_of_a_resumed_run_covers_what_was_trained_before() -> None:
    restored = LedgerSnapshot(
        trained=4, version=2, last_key=GroupKey(0, 3), trained_by_staleness={0: 3, 1: 1}
    )
    status = Play(restored=restored).coordinator.status()
    assert (status.staleness_max, status.staleness_mean) == (1, 0.25)


@pytest.mark.parametrize("overdue", ["step", "version"])
def test_a_step_or_publication_that_never_ends_fails_the_run(overdue: str) -> None:
    play = Play(make_config(learner={"step_deadline_s": 100}, rollout={"group_deadline_s": 9e9}))
    play.fill_step()
    if overdue == "version":
        play.commit()
        play.commit()
    play.tick(1899)
    assert play.take(Fail) == []
    play.tick(2)
    (fail,) = play.take(Fail)
    assert fail.exit_code == 1
    assert overdue in fail.text
