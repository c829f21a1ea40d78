"""Per-token losses: [N] log-probs in, [N] losses to be minimized out.

Pure torch on one-dimensional tensors; no averaging here (see ``aggregation``), no importance weight
(see ``off_policy``), no model, no config. ``anchor_logprobs`` belong to the policy around which the
trust region lies: the one that sampled the token, or the proximal one. Sources: CPGD report
(arXiv 2505.12504) and its released code; PPO (arXiv 1707.06347); Schulman (2020) for k1, k2, k3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def check_rank_one(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all have one shape [N]; the keywords name them in the message."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) != 1 or any(t.ndim != 1 for t in tensors.values()):
        raise ValueError(f"all tensors must have one shape [N], got {shapes}")


def cpg_loss(
    policy_logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, epsilon: float
) -> Tensor:
    """-min(ln rho * A, clip(ln rho, ln(1 - eps), ln(1 + eps)) * A), rho = policy / anchor.

    The gradient is plain policy gradient, A * grad logp, inside the trust region and zero where
    the step would leave it further. CPGD report, section 5.1 of its loss.
    """
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    log_ratio = policy_logprobs - anchor_logprobs
    clipped = log_ratio.clamp(math.log1p(-epsilon), math.log1p(epsilon))
    return -torch.minimum(log_ratio * advantages, clipped * advantages)


def ppo_clip_loss(
    policy_logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, epsilon: float
) -> Tensor:
    """-min(rho * A, clip(rho, 1 - eps, 1 + eps) * A), rho = policy / anchor: PPO's clipped
    surrogate, used by GRPO. Around the behavior policy, rho is the importance weight too; around
    the proximal policy this is decoupled PPO, and the weight comes from ``off_policy``."""
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    ratio = (policy_logprobs - anchor_logprobs).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def drift(policy_logprobs: Tensor, behavior_logprobs: Tensor, cap: float) -> Tensor:
    """sg(min(rho - 1, cap)) * logp: pulls the policy back towards the behavior policy.

    Its gradient is that of the k3 estimate of KL(behavior || policy), cut at ``cap`` in the
    gradient: beyond the cap it still pulls back, with strength ``cap``. The value means nothing.
    """
    check_rank_one(policy=policy_logprobs, behavior=behavior_logprobs)
    excess = (policy_logprobs.detach() - behavior_logprobs).exp() - 1
    return excess.clamp(max=cap) * policy_logprobs


def kl_estimate(sampled_logprobs: Tensor, other_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """Estimate of KL(sampled || other) from tokens drawn by the first.

    k1 = ln r, k2 = (ln r)^2 / 2, k3 = 1/r - 1 + ln r, with r = sampled / other. As a loss, k1 has
    zero mean gradient; k2 and k3 pull towards ``other``.
    """
    check_rank_one(sampled=sampled_logprobs, other=other_logprobs)
    log_ratio = sampled_logprobs - other_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def is_clipped(
    policy_logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, epsilon: float
) -> Tensor:
    """Boolean [N]: the clip, and not the raw ratio, decides the loss, so the gradient is zero."""
    log_ratio = (policy_logprobs - anchor_logprobs).detach()
    too_high = (advantages > 0) & (log_ratio > math.log1p(epsilon))
    return too_high | ((advantages < 0) & (log_ratio < math.log1p(-epsilon)))
