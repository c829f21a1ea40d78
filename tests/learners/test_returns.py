"""GAE, KL costs in the return and z-scores: by hand, and as the sums that their names say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.returns import cost_to_go, generalized_advantages, moments, z_scores
from learners.value_loss import value_loss

STEPS = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=12)


def test_gae_by_hand() -> None:
    # delta = [0 + 0.5 * 2 - 1, 1 - 2] = [0, -1]; A = [0 + 0.25 * -1, -1]; G = A + V.
    advantages, returns = generalized_advantages([0, 1], [1, 2], gamma=0.5, gae_lambda=0.5)
    assert advantages.tolist() == [-0.25, -1]
    assert returns.tolist() == [0.75, 1]


@given(STEPS, st.floats(0.1, 1), st.floats(0, 1))
def test_gae_is_the_double_sum_of_its_definition(
    steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = zip(*steps, strict=True)
    advantages, returns = generalized_advantages(rewards, values, gamma=gamma, gae_lambda=lam)
    after = [*values[1:], 0.0]
    expected = []
    for t in range(len(steps)):
        total = 0.0
        for later in range(t, len(steps)):
            delta = rewards[later] + gamma * after[later] - values[later]
            total += (gamma * lam) ** (later - t) * delta
        expected.append(total)
    assert advantages == pytest.approx(expected, abs=1e-9)
    assert returns == pytest.approx([a + v for a, v in zip(expected, values, strict=True)])


def test_with_lambda_one_and_no_values_gae_is_the_discounted_return() -> None:
    advantages, _ = generalized_advantages([1, 0, 2], [0, 0, 0], gamma=0.5, gae_lambda=1)
    assert advantages.tolist() == [1.5, 1, 2]


def test_gae_refuses_values_of_another_length() -> None:
    with pytest.raises(ValueError, match="rewards of shape"):
        generalized_advantages([1, 2], [1], gamma=1, gae_lambda=1)


@given(st.lists(st.floats(-3, 3), max_size=9))
def test_the_cost_to_go_is_that_of_the_token_and_all_later_ones(costs: list[float]) -> None:
    expected = [sum(costs[i:]) for i in range(len(costs))]
    assert cost_to_go(costs) == pytest.approx(expected, abs=1e-12)


def test_z_scores_have_mean_zero_and_deviation_one_over_all_tokens() -> None:
    random = np.random.default_rng(0)
    answers = [random.standard_normal(n) * 3 + 2 for n in (1, 4, 7)]
    count, total, _ = moments(answers)
    mean = total / count
    found = np.concatenate(z_scores(answers, mean, moments(answers, mean)[2] / count))
    assert (found.mean(), found.std()) == pytest.approx((0, 1))


def test_equal_advantages_have_a_z_score_of_zero() -> None:
    assert z_scores([np.ones(3)], 1.0, 0.0)[0].tolist() == [0, 0, 0]


def test_value_loss_by_hand() -> None:
    values = torch.tensor([1.5, 1.5, 0.5, 1.1], requires_grad=True)
    before, returns = torch.ones(4), torch.tensor([2.0, 0.0, 2.0, 2.0])
    found = value_loss(values, before, returns, 0.2)
    # Towards the target beyond the clip: the loss of 1.2. Astray: the loss of the value itself.
    assert found.tolist() == pytest.approx([0.32, 1.125, 1.125, 0.405])
    [slope] = torch.autograd.grad(found.sum(), values)
    assert slope.tolist() == pytest.approx([0, 1.5, -1.5, -0.9])
    assert value_loss(values, before, returns, None).tolist() == pytest.approx(
        [0.125, 1.125, 1.125, 0.405]
    )
