"""Per-token policy losses: [N] log-probs in, [N] losses to be minimized out.

Pure torch on one-dimensional tensors; no averaging here (see ``aggregation``), no importance weight
(see ``off_policy``), no model, no config. ``anchor_logprobs`` belong to the policy around which the
trust region lies: the one that sampled the token, or the proximal one; rho = policy / anchor. The
trust region is 1 - ``epsilon`` to 1 + ``epsilon_high`` (None: the same), each one number or one for
each token. Sources: CPGD report (arXiv 2505.12504) and its released code; PPO (arXiv 1707.06347);
what is newer names its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learners.divergences import check_rank_one
from learners.off_policy import geometric_log_ratio

Epsilon = float | Tensor


def pg_loss(policy_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A * logp: the plain policy gradient (REINFORCE), without any trust region."""
    check_rank_one(policy=policy_logprobs, advantages=advantages)
    return -advantages * policy_logprobs


def cpg_loss(
    policy_logprobs: Tensor,
    anchor_logprobs: Tensor,
    advantages: Tensor,
    epsilon: Epsilon,
    epsilon_high: Epsilon | None = None,
) -> Tensor:
    """-min(ln rho * A, clip(ln rho, ln(1 - eps), ln(1 + eps)) * A).

    The gradient is plain policy gradient, A * grad logp, inside the trust region and zero where
    the step would leave it further. CPGD report, section 5.1 of its loss.
    """
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    log_ratio = policy_logprobs - anchor_logprobs
    high = epsilon if epsilon_high is None else epsilon_high
    clipped = _clamp(log_ratio, _log1p(-epsilon), _log1p(high))
    return -torch.minimum(log_ratio * advantages, clipped * advantages)


def ppo_clip_loss(
    policy_logprobs: Tensor,
    anchor_logprobs: Tensor,
    advantages: Tensor,
    epsilon: Epsilon,
    epsilon_high: Epsilon | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """-min(rho * A, clip(rho, 1 - eps, 1 + eps) * A): PPO's clipped surrogate, used by GRPO.

    Around the behavior policy, rho is the importance weight too; around the proximal policy this is
    decoupled PPO, and the weight comes from ``off_policy``. A larger ``epsilon_high`` is DAPO's
    clip-higher (arXiv 2503.14476). With ``dual_clip`` d a bad token never costs more than d * |A|,
    and has no gradient beyond it (arXiv 1912.09729).
    """
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    ratio = (policy_logprobs - anchor_logprobs).exp()
    high = epsilon if epsilon_high is None else epsilon_high
    gain = torch.minimum(ratio * advantages, _clamp(ratio, 1 - epsilon, 1 + high) * advantages)
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    return -gain


def gspo_loss(
    policy_logprobs: Tensor,
    anchor_logprobs: Tensor,
    advantages: Tensor,
    segments: Tensor,
    epsilon: float,
    epsilon_high: float | None = None,
) -> Tensor:
    """-min(s * A, clip(s, 1 - eps, 1 + eps) * A), s = (pi(y) / anchor(y))^(1 / |y|) of the token's
    whole answer, so that an answer is clipped as one (GSPO, arXiv 2507.18071, equations 5 to 7).

    Each of the |y| tokens bears the loss of its answer: its mean over them is the answer's loss.
    """
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    log_ratio = geometric_log_ratio(policy_logprobs - anchor_logprobs, segments)
    ratio = log_ratio.exp()
    high = epsilon if epsilon_high is None else epsilon_high
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + high) * advantages)


def cispo_loss(
    policy_logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, epsilon_high: float
) -> Tensor:
    """-sg(min(rho, 1 + eps_high)) * A * logp: REINFORCE under a truncated importance weight, so
    that no token loses its gradient (CISPO, arXiv 2506.13585, which has no lower bound either)."""
    check_rank_one(policy=policy_logprobs, anchor=anchor_logprobs, advantages=advantages)
    ratio = (policy_logprobs - anchor_logprobs).detach().exp()
    return -ratio.clamp(max=1 + epsilon_high) * advantages * policy_logprobs


def tight_to_loose(epsilon: float, share_constant: float, progress: Tensor) -> Epsilon:
    """eps_i = lam * eps + (1 - lam) * eps * i / |y|, with lam ``share_constant`` and ``progress``
    [N] the i / |y| of each token, i from 1 (CPGD report). lam = 1 is eps itself."""
    if share_constant == 1:
        return epsilon
    return epsilon * (share_constant + (1 - share_constant) * progress)


def is_clipped(
    log_ratio: Tensor,
    advantages: Tensor,
    epsilon: Epsilon,
    epsilon_high: Epsilon | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """Boolean [N]: the clip, and not the raw ratio, decides the loss, so the gradient is zero.

    ``log_ratio`` is ln rho, of the token or of its answer, as the loss takes it.
    """
    check_rank_one(log_ratio=log_ratio, advantages=advantages)
    log_ratio = log_ratio.detach()
    high = epsilon if epsilon_high is None else epsilon_high
    outside = (advantages > 0) & (log_ratio > _log1p(high))
    outside |= (advantages < 0) & (log_ratio < _log1p(-epsilon))
    if dual_clip is not None:
        outside |= (advantages < 0) & (log_ratio > math.log(dual_clip))
    return outside


def _log1p(value: Epsilon) -> Epsilon:
    return value.log1p() if isinstance(value, Tensor) else math.log1p(value)


def _clamp(values: Tensor, low: Epsilon, high: Epsilon) -> Tensor:
    """``clamp`` that takes a number on one side and a tensor on the other."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low, high = (torch.as_tensor(b, dtype=values.dtype, device=values.device)
                     for b in (low, high))  # fmt: skip
        return torch.clamp(values, low, high)
    return values.clamp(low, high)
