"""Losses: hand-computed numbers, a slow plain loop, gradient signs, and the spec's T1-T5."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.advantages import compute_advantages
from learners.divergences import drift, kl_estimate
from learners.objectives import cpg_loss, is_clipped, ppo_clip_loss

EPSILON = 0.2


def gradient(loss: Tensor, logprobs: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logprobs)[0]


def random_tokens(n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    behavior = -torch.rand(n, generator=generator) * 4
    policy = (behavior + torch.randn(n, generator=generator) * 0.4).requires_grad_()
    return policy, behavior, torch.randn(n, generator=generator)


def logprobs_at(*ratios: float) -> tuple[Tensor, Tensor]:
    behavior = torch.full((len(ratios),), -1.0)
    return (behavior + torch.tensor(ratios).log()).requires_grad_(), behavior


def test_cpg_by_hand() -> None:
    policy, behavior = logprobs_at(1.1, 1.5, 0.5, 0.5)
    losses = cpg_loss(policy, behavior, torch.tensor([2.0, 1.0, -1.0, 1.0]), EPSILON)
    expected = [-2 * math.log(1.1), -math.log(1.2), math.log(0.8), -math.log(0.5)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_ppo_clip_by_hand() -> None:
    policy, behavior = logprobs_at(1.1, 1.5, 0.5, 0.5)
    losses = ppo_clip_loss(policy, behavior, torch.tensor([2.0, 1.0, -1.0, 1.0]), EPSILON)
    assert losses.tolist() == pytest.approx([-2.2, -1.2, 0.8, -0.5], abs=1e-6)


def test_drift_by_hand() -> None:
    policy, behavior = logprobs_at(1.5, 5.0, 0.5)
    expected = [weight * p for weight, p in zip([0.5, 2.0, -0.5], policy.tolist(), strict=True)]
    assert drift(policy, behavior, cap=2.0).tolist() == pytest.approx(expected)


def test_kl_estimators_by_hand() -> None:
    sampled, other = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert kl_estimate(sampled, other, "k1").item() == pytest.approx(0.5)
    assert kl_estimate(sampled, other, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(sampled, other, "k3").item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_kl_estimators_have_the_mean_of_the_true_kl() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    true = float((p * np.log(p / q)).sum())
    for estimator in ("k1", "k3"):
        values = kl_estimate(torch.tensor(np.log(p)), torch.tensor(np.log(q)), estimator)
        assert float((torch.tensor(p) * values).sum()) == pytest.approx(true)


def test_losses_agree_with_a_plain_loop() -> None:
    policy, behavior, advantages = random_tokens()
    cpg, ppo = [], []
    for new, then, advantage in zip(
        policy.tolist(), behavior.tolist(), advantages.tolist(), strict=True
    ):
        bounded = min(max(new - then, math.log(0.8)), math.log(1.2))
        cpg.append(-min((new - then) * advantage, bounded * advantage))
        ratio = math.exp(new - then)
        ppo.append(-min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage))
    assert cpg_loss(policy, behavior, advantages, EPSILON).tolist() == pytest.approx(cpg, abs=1e-5)
    assert ppo_clip_loss(policy, behavior, advantages, EPSILON).tolist() == pytest.approx(
        ppo, abs=1e-5
    )


@pytest.mark.parametrize("loss", [cpg_loss, ppo_clip_loss])
def test_a_step_raises_good_tokens_and_lowers_bad_ones(loss: object) -> None:
    policy, behavior = logprobs_at(1.0, 1.0)
    slope = gradient(loss(policy, behavior, torch.tensor([1.0, -1.0]), EPSILON), policy)  # type: ignore[operator]
    assert slope[0] < 0 < slope[1]


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_kl_step_moves_towards_the_reference(estimator: object) -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    slope = gradient(kl_estimate(policy, torch.tensor([-1.5, -1.5]), estimator), policy)  # type: ignore[arg-type]
    assert slope[0] > 0 > slope[1]


def test_t1_at_ratio_one_cpg_is_the_plain_policy_gradient() -> None:
    policy, _, advantages = random_tokens()
    loss = cpg_loss(policy, policy.detach(), advantages, EPSILON)
    assert torch.equal(gradient(loss, policy), -advantages)


def test_t2_beyond_the_clip_only_the_drift_pulls_and_it_lowers_the_logprob() -> None:
    policy, behavior = logprobs_at(1.3)
    assert gradient(cpg_loss(policy, behavior, torch.ones(1), EPSILON), policy).item() == 0
    slope = gradient(drift(policy, behavior, cap=2.0), policy)
    assert policy - 0.1 * slope < policy


def test_t3_drift_gradient_is_capped_and_never_changes_sign() -> None:
    policy, behavior = logprobs_at(10.0, 2.0)
    slope = 0.01 * gradient(drift(policy, behavior, cap=2.0), policy)
    assert slope.tolist() == pytest.approx([0.02, 0.01], rel=1e-5)


def test_t4_std_weight_with_token_mean_is_grpos_advantage() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 0.5])
    grpo = (rewards - rewards.mean()) / (rewards.std() + 1e-9)
    assert np.array_equal(compute_advantages(rewards, ["x"] * 4, weight="std"), grpo)


def test_t5_a_group_with_constant_reward_has_no_gradient_except_drift() -> None:
    policy, behavior, _ = random_tokens(4)
    advantages = torch.tensor(compute_advantages([1.0] * 4, ["x"] * 4)).float()
    assert not gradient(cpg_loss(policy, behavior, advantages, EPSILON), policy).any()
    assert not gradient(ppo_clip_loss(policy, behavior, advantages, EPSILON), policy).any()
    assert gradient(drift(policy, behavior, 2.0), policy).all()


def test_clipped_tokens_are_those_without_gradient() -> None:
    policy, behavior, advantages = random_tokens()
    no_gradient = gradient(cpg_loss(policy, behavior, advantages, EPSILON), policy) == 0
    clipped = is_clipped(policy.detach() - behavior, advantages, EPSILON)
    assert torch.equal(clipped, no_gradient)
    assert 0 < clipped.sum() < len(clipped)


def test_shapes_are_checked_at_the_door() -> None:
    with pytest.raises(ValueError, match="one shape"):
        cpg_loss(torch.zeros(2), torch.zeros(3), torch.zeros(2), EPSILON)
