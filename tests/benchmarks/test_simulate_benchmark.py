"""verl's policy as modelled, its published runs, and ours on the same work."""

import pytest

from benchmarks.simulate import large_fleet
from benchmarks.verl_policy import VerlPolicy, VerlSettings
from benchmarks.verl_runs import (
    FAMILY_7B,
    FAMILY_30B,
    RUN_30B,
    TARGET,
    colocated_generation_s,
    play_ours,
    play_verl,
)
from cluster.performance import NumberedPrompts
from cluster.protocol import (
    ROLLOUT,
    ActorJoined,
    Command,
    GrantLease,
    GroupGenerated,
    LoadWeights,
    Publish,
    StepCommitted,
    Train,
    WeightsPublished,
)
from safeladder.records import GroupHeader, StepReport


def policy_of(staleness_threshold: float) -> VerlPolicy:
    """2 groups an update, 2 updates a synchronisation, one engine that may hold 3 groups."""
    settings = VerlSettings(
        groups_per_update=2,
        updates_per_sync=2,
        staleness_threshold=staleness_threshold,
        concurrency=3,
    )
    policy = VerlPolicy(settings, NumberedPrompts("math"), group_size=2)
    assert len(leases(policy.handle(ActorJoined(ROLLOUT, "e", 1)))) == 3
    return policy


def leases(commands: list[Command]) -> list[GrantLease]:
    return [command for command in commands if isinstance(command, GrantLease)]


def finish(policy: VerlPolicy, ordinal: int) -> list[Command]:
    header = GroupHeader(
        key=NumberedPrompts("math").next_key(None)._replace(ordinal=ordinal),
        attempt=1,
        fence=1,
        engine="e",
        lengths=(1, 1),
        min_version=0,
        max_version=0,
        sha256="",
        generate_s=1.0,
    )
    return policy.handle(GroupGenerated(header, "group"))


def commit(policy: VerlPolicy, step: int) -> list[Command]:
    return policy.handle(StepCommitted(StepReport(step=step, version=step, metrics={}, seconds=0)))


def test_verl_begins_no_more_than_its_budget_between_two_synchronisations() -> None:
    policy = policy_of(staleness_threshold=0.5)  # 1.5 x 2 x 2 = 6
    begun = 3 + sum(len(leases(finish(policy, ordinal))) for ordinal in range(6))
    assert begun == 6


def test_verl_trains_finished_groups_oldest_first_and_waits_for_its_synchronisation() -> None:
    policy = policy_of(staleness_threshold=0.5)
    commands = [finish(policy, ordinal) for ordinal in (2, 0, 1, 3)]
    (train,) = [c for batch in commands for c in batch if isinstance(c, Train)]
    assert [group.key.ordinal for group in train.order.groups] == [2, 0]
    assert isinstance(commit(policy, 1)[-1], Train)
    assert commit(policy, 2)[:2] == [Publish(2), LoadWeights("e", 2)]
    assert not any(isinstance(c, Train) for c in [*finish(policy, 4), *finish(policy, 5)])
    commands_after = policy.handle(WeightsPublished(2))
    assert isinstance(commands_after[-1], Train)
    assert len(leases(commands_after)) == 3  # two wait, none is in flight: 4 of the budget are left


def test_verls_7b_run_is_reproduced_within_5_percent() -> None:
    assert colocated_generation_s(FAMILY_7B, TARGET) == pytest.approx(177.85, rel=0.02)
    report = play_verl(FAMILY_7B, TARGET, steps=6)
    assert report.step_s * 4 == pytest.approx(150.63, rel=0.05)
    assert report.training_bubble == pytest.approx(0.22, abs=0.02)


def test_verls_30b_run_is_predicted_within_15_percent() -> None:
    assert colocated_generation_s(FAMILY_30B, RUN_30B) == pytest.approx(348.05, rel=0.02)
    assert play_verl(FAMILY_30B, RUN_30B, steps=4).step_s * 4 == pytest.approx(282.75, rel=0.15)


def test_our_policy_is_nearer_to_the_speed_of_light_on_the_same_work() -> None:
    report = play_ours(FAMILY_7B, TARGET, max_staleness=8, steps=4)
    assert report.training_s / report.step_s > 0.9
    assert sum(report.dropped.values()) < 0.03 * report.num_trained
    assert report.trained_length_mean == pytest.approx(report.generated_length_mean, rel=0.03)


def test_a_larger_fleet_with_faults_stays_near_it_too() -> None:
    report, share = large_fleet(versions=3, warmup=3, scale=2)
    assert share > 0.9
    assert report.staleness_max <= 8
