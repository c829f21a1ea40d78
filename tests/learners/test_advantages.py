"""Advantages: hand-computed numbers, a slow plain loop, and independence from the order of rows."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.advantages import Baseline, GroupWeight, compute_advantages

Rows = list[tuple[int, float]]


def advantages_by_plain_loop(
    rows: Rows, weight: GroupWeight, cap: float, baseline: Baseline = "group_mean"
) -> list[float]:
    by_group: dict[int, list[float]] = {}
    for group, reward in rows:
        by_group.setdefault(group, []).append(reward)
    varied = sum(len(set(rewards)) > 1 for rewards in by_group.values())
    result = []
    for group, reward in rows:
        rewards = by_group[group]
        others = [*rewards]
        if baseline == "leave_one_out":
            others.remove(reward)
        if len(set(rewards)) == 1:
            result.append(0.0)
            continue
        if weight == "equal":
            factor = 1.0
        elif weight == "std":
            factor = 1 / (statistics.pstdev(rewards) + 1e-9)
        else:
            factor = min(cap, len(by_group) / varied)
        result.append(factor * (reward - statistics.fmean(others)))
    return result


def test_equal_weight_is_the_distance_to_the_group_mean() -> None:
    assert compute_advantages([1, 0, 0, 0], ["a"] * 4, weight="equal").tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]


def test_std_weight_is_grpos_z_score_with_the_population_deviation() -> None:
    found = compute_advantages([1, 0, 2, 0], ["a", "a", "b", "b"], weight="std")
    assert found == pytest.approx([1, -1, 1, -1], rel=1e-8)


def test_clip_filter_weight_is_groups_over_varied_groups_up_to_the_cap() -> None:
    rewards, groups = [1, 0, 1, 1, 0, 0], ["a", "a", "b", "b", "c", "c"]
    assert compute_advantages(rewards, groups, weight="clip_filter", weight_cap=9) == pytest.approx(
        [1.5, -1.5, 0, 0, 0, 0]
    )
    assert compute_advantages(rewards, groups, weight="clip_filter", weight_cap=2) == pytest.approx(
        [1, -1, 0, 0, 0, 0]
    )


def test_leave_one_out_compares_with_the_other_siblings() -> None:
    found = compute_advantages(
        [1, 0, 0.5], ["a"] * 3, baseline="leave_one_out", weight="equal"
    ).tolist()
    assert found == pytest.approx([0.75, -0.75, 0])


@pytest.mark.parametrize("weight", ["equal", "std", "clip_filter"])
def test_equal_rewards_and_lone_samples_get_exactly_zero(weight: GroupWeight) -> None:
    found = compute_advantages([0.1, 0.1, 0.1, 7.0], ["a", "a", "a", "lone"], weight=weight)
    assert found.tolist() == [0, 0, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.5]))),
    st.sampled_from(["equal", "std", "clip_filter"]),
    st.sampled_from(["group_mean", "leave_one_out"]),
    st.randoms(use_true_random=False),
)
def test_agrees_with_the_plain_loop_in_any_order_of_rows(
    rows: Rows, weight: GroupWeight, baseline: Baseline, random: object
) -> None:
    random.shuffle(rows)  # type: ignore[attr-defined]
    found = compute_advantages(
        [r for _, r in rows], [g for g, _ in rows], baseline=baseline, weight=weight
    )
    assert np.allclose(found, advantages_by_plain_loop(rows, weight, 3.0, baseline), rtol=1e-6)


def test_bad_input_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="nan"):
        compute_advantages([1.0, float("nan")], ["a", "a"])
    with pytest.raises(ValueError, match="2 group keys"):
        compute_advantages([1.0], ["a", "a"])
