"""Losses beyond CPG and PPO's clip: numbers by hand, slow loops, and where gradients vanish."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learners.objectives import (
    cispo_loss,
    cpg_loss,
    gspo_loss,
    is_clipped,
    pg_loss,
    ppo_clip_loss,
    tight_to_loose,
)
from tests.learners.test_objectives import gradient, logprobs_at, random_tokens

Tokens = list[tuple[float, float, float]]
TOKENS = st.lists(
    st.tuples(st.floats(-6, 0), st.floats(-6, 0), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])),
    min_size=1,
    max_size=12,
)


def columns(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    policy, anchor, advantages = (torch.tensor(c, dtype=torch.float64) for c in zip(*tokens))  # noqa: B905 - rows of three
    return policy.requires_grad_(), anchor, advantages


def test_plain_policy_gradient_is_minus_advantage_times_logprob() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = pg_loss(policy, torch.tensor([2.0, -1.0]))
    assert loss.tolist() == [2.0, -2.0]
    assert gradient(loss, policy).tolist() == [-2.0, 1.0]


def test_clip_higher_lets_good_tokens_rise_further_and_bad_ones_fall_as_before() -> None:
    policy, behavior = logprobs_at(1.25, 1.35, 0.75, 0.85)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = ppo_clip_loss(policy, behavior, advantages, 0.2, 0.28)
    assert loss.tolist() == pytest.approx([-1.25, -1.28, 0.8, 0.85], abs=1e-6)
    assert (gradient(loss, policy) != 0).tolist() == [True, False, False, True]
    loss = cpg_loss(policy, behavior, advantages, 0.2, 0.28)
    assert (gradient(loss, policy) != 0).tolist() == [True, False, False, True]


def test_dual_clip_bounds_what_a_bad_token_costs_and_touches_no_good_one() -> None:
    policy, behavior = logprobs_at(2.0, 5.0, 5.0)
    advantages = torch.tensor([-1.0, -1.0, 1.0])
    loss = ppo_clip_loss(policy, behavior, advantages, 0.2, dual_clip=3.0)
    assert loss.tolist() == pytest.approx([2.0, 3.0, -1.2], abs=1e-6)
    assert (gradient(loss, policy) != 0).tolist() == [True, False, False]


def test_tight_to_loose_by_hand() -> None:
    progress = torch.tensor([0.25, 0.5, 0.75, 1.0])
    found = tight_to_loose(0.2, 0.6, progress)
    assert isinstance(found, Tensor)
    assert found.tolist() == pytest.approx([0.14, 0.16, 0.18, 0.2])
    assert tight_to_loose(0.2, 1.0, progress) == 0.2


def test_a_trust_region_for_each_token_is_that_of_its_own_epsilon() -> None:
    policy, behavior, advantages = random_tokens(9)
    epsilons = torch.linspace(0.05, 0.4, 9)
    for loss in (cpg_loss, ppo_clip_loss):
        found = loss(policy, behavior, advantages, epsilons, 0.3)
        one = [
            loss(policy[i : i + 1], behavior[i : i + 1], advantages[i : i + 1], float(e), 0.3)
            for i, e in enumerate(epsilons)
        ]
        assert torch.allclose(found, torch.cat(one), atol=1e-6)


@given(TOKENS, st.floats(0.05, 0.5), st.floats(0.05, 0.9), st.none() | st.floats(2, 4))
def test_clipped_losses_agree_with_a_plain_loop(
    tokens: Tokens, low: float, high: float, dual: float | None
) -> None:
    policy, anchor, advantages = columns(tokens)
    ppo, cpg, cispo = [], [], []
    for new, then, a in tokens:
        rho = math.exp(new - then)
        gain = min(rho * a, min(max(rho, 1 - low), 1 + high) * a)
        ppo.append(-max(gain, dual * a) if dual is not None and a < 0 else -gain)
        bounded = min(max(new - then, math.log(1 - low)), math.log(1 + high))
        cpg.append(-min((new - then) * a, bounded * a))
        cispo.append(-min(rho, 1 + high) * a * new)
    assert ppo_clip_loss(policy, anchor, advantages, low, high, dual).tolist() == pytest.approx(ppo)
    assert cpg_loss(policy, anchor, advantages, low, high).tolist() == pytest.approx(cpg)
    assert cispo_loss(policy, anchor, advantages, high).tolist() == pytest.approx(cispo)


@given(TOKENS, st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_gspo_agrees_with_a_plain_loop_over_answers(tokens: Tokens, places: list[int]) -> None:
    policy, anchor, advantages = columns(tokens)
    answers = sorted(set(places[: len(tokens)]))
    segments = torch.tensor([answers.index(p) for p in places[: len(tokens)]])
    expected = []
    for own, (_, _, a) in zip(segments.tolist(), tokens, strict=True):
        gaps = [t[0] - t[1] for t, s in zip(tokens, segments.tolist(), strict=True) if s == own]
        ratio = math.exp(sum(gaps) / len(gaps))
        expected.append(-min(ratio * a, min(max(ratio, 0.9), 1.3) * a))
    found = gspo_loss(policy, anchor, advantages, segments, 0.1, 0.3)
    assert found.tolist() == pytest.approx(expected)


def test_gspo_clips_an_answer_as_one_and_shares_its_gradient() -> None:
    policy, behavior = logprobs_at(1.5, 1.0, 1.0, 1.01)
    segments = torch.tensor([0, 0, 1, 1])
    loss = gspo_loss(policy, behavior, torch.ones(4), segments, 0.1, 0.1)
    slopes = gradient(loss, policy)
    # The first answer's mean ratio is 1.22: its second token stands at 1 and is clipped with it.
    assert slopes[:2].tolist() == [0, 0]
    # d/dlogp of 2 tokens * s, s = exp(mean): each gets s.
    assert slopes[2:].tolist() == pytest.approx([-math.sqrt(1.01)] * 2)


def test_cispo_keeps_a_gradient_where_ppo_has_none() -> None:
    policy, behavior = logprobs_at(1.1, 9.0, 0.01)
    advantages = torch.tensor([1.0, 1.0, -1.0])
    found = gradient(cispo_loss(policy, behavior, advantages, 1.0), policy)
    assert found.tolist() == pytest.approx([-1.1, -2.0, 0.01], rel=1e-5)
    ppo = gradient(ppo_clip_loss(policy, behavior, advantages, 0.2, 1.0), policy)
    assert ppo[1:].tolist() == [0, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "pg": lambda policy, _, a: pg_loss(policy, a),
    "cpg": lambda policy, anchor, a: cpg_loss(policy, anchor, a, 0.2, 0.3),
    "ppo_clip": lambda policy, anchor, a: ppo_clip_loss(policy, anchor, a, 0.2, 0.3, 3.0),
    "gspo": lambda policy, anchor, a: gspo_loss(policy, anchor, a, torch.tensor([0, 1]), 0.2),
    "cispo": lambda policy, anchor, a: cispo_loss(policy, anchor, a, 0.2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_at_ratio_one_every_loss_is_the_plain_policy_gradient(name: str) -> None:
    policy, behavior = logprobs_at(1.0, 1.0)
    slopes = gradient(LOSSES[name](policy, behavior, torch.tensor([2.0, -3.0])), policy)
    assert slopes.tolist() == pytest.approx([-2.0, 3.0])


@pytest.mark.parametrize("name", ["cpg", "ppo_clip"])
def test_tokens_that_count_as_clipped_are_those_without_gradient(name: str) -> None:
    policy, behavior, advantages = random_tokens(200)
    policy = (policy.detach() + torch.randn(200)).requires_grad_()
    dual = 3.0 if name == "ppo_clip" else None
    has_none = gradient(LOSSES[name](policy, behavior, advantages), policy) == 0
    clipped = is_clipped(policy.detach() - behavior, advantages, 0.2, 0.3, dual)
    assert torch.equal(clipped, has_none)
    assert 0 < clipped.sum() < 200
