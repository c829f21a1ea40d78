"""The model against numbers worked out by hand, and against verl's published runs."""

import math
from dataclasses import replace

import pytest

from cluster.speed_of_light import (
    StepCosts,
    asynchronous_bound,
    best_split,
    bubble,
    max_speedup,
    mean_staleness,
    reward_concurrency_needed,
    share_of_light,
    splits,
)

COSTS = StepCosts(decode_gpu_s=800.0, tail_s=30.0, train_gpu_s=400.0)


def test_generation_is_the_larger_of_work_and_tail() -> None:
    assert COSTS.generation_s(20) == 40.0
    assert COSTS.generation_s(100) == 30.0  # more GPUs do not shorten one response


def test_training_scales_with_a_loss() -> None:
    assert COSTS.training_s(16) == 25.0
    assert replace(COSTS, train_scaling=0.5).training_s(16) == 100.0


def test_a_synchronous_step_is_the_sum_of_all_phases() -> None:
    costs = replace(COSTS, recompute_s=1.0, reward_s=2.0, sync_s=3.0, switch_s=4.0)
    assert costs.synchronous_s(20) == 40.0 + 20.0 + 10.0


def test_an_asynchronous_step_is_the_longest_role() -> None:
    costs = replace(COSTS, recompute_s=5.0, pause_s=2.0, reward_work_s=600.0)
    bound = asynchronous_bound(costs, 16, 8, reward_concurrency=10)
    assert (bound.decoding_s, bound.tail_s) == (52.0, 32.0)
    assert (bound.training_s, bound.rewards_s) == (55.0, 60.0)
    assert (bound.step_s, bound.binding) == (60.0, "rewards")
    assert bound.training_bubble == pytest.approx(5 / 60)
    assert bound.generation_bubble == pytest.approx(8 / 60)


@pytest.mark.parametrize(
    ("rollout_gpus", "learner_gpus", "binding"),
    [(8, 16, "decoding"), (40, 16, "tail"), (40, 8, "training")],
)
def test_the_binding_term_is_named(rollout_gpus: int, learner_gpus: int, binding: str) -> None:
    assert asynchronous_bound(COSTS, rollout_gpus, learner_gpus).binding == binding


def test_the_tail_may_spread_over_the_steps_that_staleness_allows() -> None:
    assert asynchronous_bound(COSTS, 40, 16, max_staleness=2).tail_s == 15.0


def test_overlap_alone_is_worth_nothing() -> None:
    costs = replace(COSTS, tail_s=0.0)
    best = best_split(splits(costs, 12))
    assert (best.rollout_gpus, best.learner_gpus) == (8, 4)
    assert best.bound.step_s == costs.synchronous_s(12) == (800.0 + 400.0) / 12


def test_splits_are_whole_engines_and_whole_learner_nodes() -> None:
    found = splits(COSTS, 16, rollout_unit=4, learner_unit=4)
    assert [(s.rollout_gpus, s.learner_gpus) for s in found] == [(4, 12), (8, 8), (12, 4)]


def test_gpus_that_fit_neither_role_are_left_over() -> None:
    (split,) = splits(COSTS, 7, rollout_unit=2, learner_unit=4)
    assert (split.rollout_gpus, split.learner_gpus) == (2, 4)


def test_too_few_gpus_for_a_split_are_refused() -> None:
    with pytest.raises(ValueError, match="4 GPUs hold no engine of 4 beside a learner of 1"):
        splits(COSTS, 4, rollout_unit=4)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_seconds_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match="train_gpu_s"):
        replace(COSTS, train_gpu_s=value)


def test_a_learner_does_not_gain_more_than_its_gpus() -> None:
    with pytest.raises(ValueError, match="train_scaling is in"):
        replace(COSTS, train_scaling=1.1)


def test_littles_law_gives_staleness_and_verifier_concurrency() -> None:
    assert mean_staleness(groups_in_flight=96, groups_queued=32, groups_per_step=64) == 2.0
    # 512 calls in 100 s, each up to 3.9 s: 19.97 are out at a time.
    assert reward_concurrency_needed(512, 100.0, 3.9) == 20


def test_verl_7b_reaches_78_percent_of_its_speed_of_light() -> None:
    """Qwen2.5-Math-7B, 128 H20: step, gen and update_actor of docs/advance/fully_async.md. The
    trainer's 117.5 s are the asynchronous step less its wait."""
    step_s, wait_s, synchronous_s = 150.63, 33.14, 356.30
    costs = StepCosts(decode_gpu_s=0.0, tail_s=0.0, train_gpu_s=64 * (step_s - wait_s))
    bound = asynchronous_bound(costs, 64, 64)
    assert bound.step_s == pytest.approx(117.5, abs=0.05)
    assert max_speedup(synchronous_s, bound) == pytest.approx(3.03, abs=0.005)
    assert synchronous_s / step_s == pytest.approx(2.37, abs=0.005)
    assert share_of_light(bound.step_s, step_s) == pytest.approx(0.78, abs=0.005)
    assert bubble(wait_s, step_s) == pytest.approx(0.22, abs=0.005)


def test_verl_30b_reaches_92_percent_of_its_speed_of_light() -> None:
    """Qwen3-30B-A3B, 96 + 32 H20."""
    step_s, wait_s, synchronous_s = 282.75, 22.06, 497.89
    costs = StepCosts(decode_gpu_s=0.0, tail_s=0.0, train_gpu_s=32 * (step_s - wait_s))
    bound = asynchronous_bound(costs, 96, 32)
    assert max_speedup(synchronous_s, bound) == pytest.approx(1.91, abs=0.005)
    assert synchronous_s / step_s == pytest.approx(1.76, abs=0.005)
    assert share_of_light(bound.step_s, step_s) == pytest.approx(0.92, abs=0.005)
    assert bubble(wait_s, step_s) == pytest.approx(0.08, abs=0.005)


def test_the_terms_of_verls_synchronous_step_add_up() -> None:
    """gen 177.85, old_log_prob 53.92, update_actor 113.81; what is left of 356.30 is r + w + s."""
    costs = StepCosts(
        decode_gpu_s=0.0,
        tail_s=177.85,
        train_gpu_s=128 * 113.81,
        recompute_s=53.92,
        switch_s=356.30 - 177.85 - 53.92 - 113.81,
    )
    assert costs.synchronous_s(128) == pytest.approx(356.30)
