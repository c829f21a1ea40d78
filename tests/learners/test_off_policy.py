"""Importance weights: numbers by hand, a slow loop, gradient signs, on-policy tokens spared."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.objectives import cpg_loss, ppo_clip_loss
from learners.off_policy import (
    Correction,
    ImportanceWeights,
    Level,
    clipped_weights,
    effective_sample_sums,
    geometric_log_ratio,
    importance_weights,
    masked_weights,
    off_policy_log_ratio,
    sequence_log_ratio,
    truncated_weights,
)

LOW, HIGH = 0.5, 2.0
RULES = [(c, level) for c in get_args(Correction) for level in get_args(Level)]


def log_of(*ratios: float) -> Tensor:
    return torch.tensor(ratios).log()


def apply(log_ratio: Tensor, segments: Tensor, correction: Any, level: Any) -> ImportanceWeights:
    return importance_weights(
        log_ratio, segments, correction=correction, level=level, low=LOW, high=HIGH
    )


def flags(of: Tensor) -> list[int]:
    return [int(i) for i in of]


def test_truncation_caps_from_above_alone_by_hand() -> None:
    found = truncated_weights(log_of(0.01, 1.0, 1.9, 7.0), HIGH)
    assert found.weights.tolist() == pytest.approx([0.01, 1.0, 1.9, 2.0])
    assert flags(found.is_clipped) == [0, 0, 0, 1]
    assert not found.is_masked.any()


def test_clipping_bounds_both_sides_by_hand() -> None:
    found = clipped_weights(log_of(0.1, 1.1, 3.0), 0.8, 1.2)
    assert found.weights.tolist() == pytest.approx([0.8, 1.1, 1.2])
    assert flags(found.is_clipped) == [1, 0, 1]


def test_icepop_leaves_out_what_is_outside_the_band_by_hand() -> None:
    log_ratio = log_of(0.4, 0.6, 1.0, 1.9, 2.1)
    found = masked_weights(log_ratio, log_ratio, LOW, HIGH)
    assert found.weights.tolist() == pytest.approx([0.0, 0.6, 1.0, 1.9, 0.0])
    assert flags(found.is_masked) == [1, 0, 0, 0, 1]


def test_sequence_ratios_by_hand() -> None:
    log_ratio, segments = log_of(2.0, 2.0, 2.0, 0.5), torch.tensor([0, 1, 1, 1])
    product = sequence_log_ratio(log_ratio, segments).exp()
    assert product.tolist() == pytest.approx([2.0, 2.0, 2.0, 2.0])
    mean = geometric_log_ratio(log_ratio, segments).exp()
    assert mean.tolist() == pytest.approx([2.0, *[2 ** (1 / 3)] * 3])


def test_a_masked_sequence_goes_whole_and_a_kept_one_keeps_its_token_ratios() -> None:
    log_ratio, segments = log_of(3.0, 0.5, 3.0, 1.0), torch.tensor([0, 0, 1, 1])
    found = apply(log_ratio, segments, "mask", "sequence")
    assert found.weights.tolist() == pytest.approx([3.0, 0.5, 0.0, 0.0])
    assert flags(found.is_masked) == [0, 0, 1, 1]


def test_a_truncated_sequence_shares_one_weight() -> None:
    log_ratio, segments = log_of(1.5, 1.5, 1.1, 1.1), torch.tensor([0, 0, 1, 1])
    found = apply(log_ratio, segments, "truncate", "sequence")
    assert found.weights.tolist() == pytest.approx([2.0, 2.0, 1.21, 1.21])
    assert flags(found.is_clipped) == [1, 1, 0, 0]


def plain_weight(ratios: list[list[float]], s: int, t: int, correction: str, level: str) -> float:
    """What the documentation says, for one token, without tensors."""
    own, answer = ratios[s][t], ratios[s]
    unit = {
        "token": own,
        "sequence": math.prod(answer),
        "geometric": math.prod(answer) ** (1 / len(answer)),
    }[level]
    if correction == "none":
        return 1.0
    if correction == "clip":
        return min(max(unit, LOW), HIGH)
    if correction == "truncate":
        return min(unit, HIGH)
    return own if LOW <= unit <= HIGH else 0.0


@pytest.mark.parametrize(("correction", "level"), RULES)
def test_weights_agree_with_a_plain_loop(correction: str, level: str) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = [1, 7, 3, 12, 1, 5]
    log_ratio = 0.6 * torch.randn(sum(lengths), generator=generator)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ratios = [part.exp().tolist() for part in log_ratio.split(lengths)]
    expected = [
        plain_weight(ratios, s, t, correction, level)
        for s, length in enumerate(lengths)
        for t in range(length)
    ]
    found = apply(log_ratio, segments, correction, level)
    assert found.weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(found.is_masked, found.weights == 0)


tokens = st.lists(
    st.tuples(st.floats(-200, 200, width=32), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=24,
)


@settings(max_examples=150, deadline=None)
@given(tokens, st.sampled_from(RULES))
def test_a_sequence_without_stale_tokens_keeps_weight_one_whatever_lies_beside_it(
    rows: list[tuple[float, bool, int]], rule: tuple[str, str]
) -> None:
    """Also: weights are finite numbers within the bounds, however far the policies are apart."""
    gap, is_stale, segments = (torch.tensor(column) for column in zip(*rows, strict=True))
    behavior = torch.full(gap.shape, -3.0)
    log_ratio = off_policy_log_ratio(behavior + gap, behavior, is_stale)
    found = apply(log_ratio, segments, *rule)
    fresh = ~torch.isin(segments, segments[is_stale])
    assert (found.weights[fresh] == 1).all()
    assert not (found.is_clipped | found.is_masked)[fresh].any()
    if rule[1] == "token":
        assert (found.weights[~is_stale] == 1).all()
    if rule[0] != "mask":
        assert (found.weights.isfinite() & (found.weights >= 0) & (found.weights <= HIGH)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 0, width=32), min_size=1, max_size=24), st.sampled_from(RULES))
def test_where_policy_and_behavior_agree_every_rule_weighs_exactly_one(
    logprobs: list[float], rule: tuple[str, str]
) -> None:
    policy = torch.tensor(logprobs)
    segments = torch.arange(len(logprobs)) // 3
    log_ratio = off_policy_log_ratio(policy, policy.clone(), torch.ones(len(logprobs)).bool())
    found = apply(log_ratio, segments, *rule)
    assert (found.weights == 1).all()
    assert not (found.is_clipped | found.is_masked).any()


@pytest.mark.parametrize(("correction", "level"), RULES)
@pytest.mark.parametrize("loss", [cpg_loss, ppo_clip_loss])
def test_a_weighted_step_raises_good_tokens_lowers_bad_ones_and_skips_masked_ones(
    loss: Any, correction: str, level: str
) -> None:
    policy = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    behavior = policy.detach() - log_of(1.1, 1.1, 9.0, 9.0)
    segments = torch.tensor([0, 1, 2, 3])
    log_ratio = off_policy_log_ratio(policy, behavior, torch.ones(4).bool())
    weights = apply(log_ratio, segments, correction, level).weights
    assert not weights.requires_grad
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    anchor = policy.detach().clone()
    losses = weights * loss(policy, anchor, advantages, 0.2)
    slope = torch.autograd.grad(losses.sum(), policy)[0]
    assert slope[0] < 0 < slope[1]
    far = [0.0, 0.0] if correction == "mask" else [-1.0, 1.0]
    assert slope[2:].sign().tolist() == far


def test_decoupled_ppo_by_hand() -> None:
    """Ratio to the proximal policy clipped; proximal / behavior truncated at 2 and detached."""
    behavior = torch.full((3,), -2.0)
    proximal = behavior + log_of(1.5, 4.0, 0.5)
    policy = (proximal + log_of(1.1, 1.5, 0.9)).requires_grad_()
    log_ratio = off_policy_log_ratio(proximal, behavior, torch.ones(3).bool())
    weights = truncated_weights(log_ratio, HIGH).weights
    losses = weights * ppo_clip_loss(policy, proximal, torch.tensor([1.0, 1.0, -1.0]), 0.2)
    assert losses.tolist() == pytest.approx([-1.5 * 1.1, -2.0 * 1.2, 0.5 * 0.9], rel=1e-5)
    slope = torch.autograd.grad(losses.sum(), policy)[0]
    assert slope.tolist() == pytest.approx([-1.5 * 1.1, 0.0, 0.5 * 0.9], rel=1e-5)


def test_the_effective_sample_is_whole_on_policy_and_one_token_if_one_outweighs_all() -> None:
    def share(log_ratio: Tensor) -> float:
        total, squares = effective_sample_sums(log_ratio)
        return total**2 / (log_ratio.numel() * squares)

    assert share(torch.zeros(8)) == 1.0
    assert share(log_of(1.0, 3.0)) == pytest.approx(16 / 20)
    assert share(torch.tensor([500.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_shapes_are_checked_at_the_door() -> None:
    with pytest.raises(ValueError, match="one shape"):
        importance_weights(
            torch.zeros(2), torch.zeros(3), correction="clip", level="token", low=0.8, high=1.2
        )
    with pytest.raises(ValueError, match="one shape"):
        clipped_weights(torch.zeros(2, 2), 0.8, 1.2)
