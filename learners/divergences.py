"""How far two policies are apart, token by token: drift, and estimators of KL. [N] in, [N] out.

Pure torch on one-dimensional tensors; no averaging, no model, no config. Sources: CPGD report
(arXiv 2505.12504) and its released code; Schulman (2020) for k1, k2, k3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


def check_rank_one(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all have one shape [N]; the keywords name them in the message."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if len(set(shapes.values())) != 1 or any(t.ndim != 1 for t in tensors.values()):
        raise ValueError(f"all tensors must have one shape [N], got {shapes}")


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
