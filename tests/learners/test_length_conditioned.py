"""CANON by hand and against a plain loop (T6), and the soft penalty for answers near the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.advantages import compute_advantages
from learners.aggregation import token_weights
from learners.length_conditioned import canon_advantages, overlong_penalties

Answer = tuple[int, float, int, bool]
"""Group, reward, length, cut off."""
ANSWERS = st.lists(
    st.tuples(
        st.integers(0, 3), st.sampled_from([0.0, 0.1, 1.0, 2.5]), st.integers(1, 4), st.booleans()
    ),
    min_size=1,
    max_size=20,
)


def canon(rewards: list[float], lengths: list[int], mu: float, alpha: float) -> list[float]:
    plain = [False] * len(rewards)
    found = canon_advantages(rewards, ["x"] * len(rewards), lengths, plain, mu=mu, alpha=alpha)
    return list(found)


def by_plain_loop(answers: list[Answer], mu: float, alpha: float) -> list[float]:
    found = [0.0] * len(answers)
    for group in {a[0] for a in answers}:
        rows = [i for i, a in enumerate(answers) if a[0] == group]
        if len({(answers[i][3], answers[i][2]) for i in rows}) == 1:
            mean = sum(answers[i][1] for i in rows) / len(rows) if len(rows) > 1 else 0.0
            for i in rows:
                found[i] = answers[i][1] - mean
            continue
        ranked: list[int] = []
        for i in rows:  # stable insertion by (cut off, length)
            place = len(ranked)
            while place and (answers[ranked[place - 1]][3], answers[ranked[place - 1]][2]) > (
                answers[i][3],
                answers[i][2],
            ):
                place -= 1
            ranked.insert(place, i)
        short, long = ranked[: len(rows) // 2], ranked[len(rows) // 2 :]
        mean_short = sum(answers[i][1] for i in short) / len(short)
        mean_long = sum(answers[i][1] for i in long) / len(long)
        for i in long:
            reward = answers[i][1]
            found[i] = mu * (alpha * reward - mean_short) + (1 - mu) * (reward - mean_long)
        for i in short:
            reward = answers[i][1]
            found[i] = mu * (reward - alpha * mean_long) + (1 - mu) * (reward - mean_short)
    return found


def test_canon_by_hand() -> None:
    # Short half: rewards 1 and 0, mean 0.5. Long half: 1 and 1, mean 1.
    rewards, lengths = [1.0, 1.0, 0.0, 1.0], [10, 40, 20, 30]
    assert canon(rewards, lengths, mu=1.0, alpha=1.0) == pytest.approx([0, 0.5, -1, 0.5])
    assert canon(rewards, lengths, mu=0.0, alpha=1.0) == pytest.approx([0.5, 0, -0.5, 0])
    assert canon(rewards, lengths, mu=1.0, alpha=0.8) == pytest.approx([0.2, 0.3, -0.8, 0.3])


def test_t6_with_mu_a_half_and_alpha_one_an_even_group_has_the_mean_baseline_over_the_limit() -> (
    None
):
    rewards, lengths = [0.0, 1.0, 0.5, 2.0], [3, 1, 4, 2]
    found = np.array(canon(rewards, lengths, mu=0.5, alpha=1.0))
    masks = [np.ones(n, np.float32) for n in lengths]
    weights = token_weights(masks, ["x"] * 4, "seq-mean-token-sum", max_tokens=8)
    per_token = [w[0] * a for w, a in zip(weights, found, strict=True)]
    assert per_token == pytest.approx((np.array(rewards) - np.mean(rewards)) / 8 / 4)


def test_t6_the_odd_answer_is_a_long_one() -> None:
    # S = {1}, L = {0, 0}: under mu = 1 the short one is compared with a mean of 0.
    assert canon([1.0, 0.0, 0.0], [1, 2, 3], mu=1.0, alpha=1.0) == pytest.approx([1, -1, -1])


def test_t6_of_equal_lengths_the_earlier_answer_is_the_shorter() -> None:
    # S = {rows 0 and 1}, whichever of the equal rows 1 and 2 is meant.
    rewards, lengths = [1.0, 1.0, 0.0, 0.0], [1, 2, 2, 3]
    assert canon(rewards, lengths, mu=1.0, alpha=1.0) == pytest.approx([1, 1, -1, -1])
    swapped = canon([1.0, 0.0, 1.0, 0.0], lengths, mu=1.0, alpha=1.0)
    assert swapped == pytest.approx([0.5, -0.5, 0.5, -0.5])


def test_an_answer_that_was_cut_off_counts_as_long_whatever_its_length() -> None:
    cut = [True, False, False, False]
    found = canon_advantages([1.0, 0, 0, 0], ["x"] * 4, [1, 5, 5, 9], cut, mu=1.0, alpha=1.0)
    # L = {the cut one, the longest of the others}: mean 0.5 against a short half of mean 0.
    assert found.tolist() == pytest.approx([1, -0.5, -0.5, 0])


def test_answers_of_one_length_get_the_plain_group_mean_and_a_lone_one_its_reward() -> None:
    assert canon([1.0, 0.0, 0.0], [5, 5, 5], mu=1.0, alpha=0.5) == pytest.approx(
        list(compute_advantages([1.0, 0.0, 0.0], ["x"] * 3, weight="equal"))
    )
    assert canon([0.7], [5], mu=1.0, alpha=0.5) == [0.7]


def test_alpha_below_one_favors_the_short_half_of_a_group_that_earns_the_same() -> None:
    short, long = canon([1.0, 1.0], [2, 9], mu=0.5, alpha=0.9)
    assert short == pytest.approx(0.05)
    assert long == pytest.approx(-0.05)


@given(ANSWERS, st.floats(0, 1), st.floats(0.1, 1))
def test_agrees_with_a_plain_loop(answers: list[Answer], mu: float, alpha: float) -> None:
    groups, rewards, lengths, cut = zip(*answers, strict=True)
    found = canon_advantages(rewards, groups, lengths, cut, mu=mu, alpha=alpha)
    assert found == pytest.approx(by_plain_loop(answers, mu, alpha))


def test_a_negative_reward_is_refused_with_its_value_and_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"canon needs rewards .* negative, one is -0\.5"):
        canon([1.0, -0.5], [1, 2], mu=0.5, alpha=0.9)


def test_the_penalty_grows_over_the_buffer_and_stays_at_its_factor() -> None:
    found = overlong_penalties([1, 80, 90, 100, 140], limit=100, buffer=20, factor=2.0)
    assert found.tolist() == [0, 0, -1, -2, -2]


@given(st.lists(st.integers(0, 50)), st.integers(1, 50), st.floats(0, 3))
def test_the_penalty_is_dapos_formula_up_to_the_limit(
    lengths: list[int], buffer: int, factor: float
) -> None:
    expected = [min(0.0, -(n - (50 - buffer)) / buffer * factor) for n in lengths]
    found = overlong_penalties(lengths, limit=50, buffer=buffer, factor=factor)
    assert found.tolist() == pytest.approx(expected)
