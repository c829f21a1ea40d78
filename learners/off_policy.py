"""Importance weights for tokens that an older policy sampled: [N] log-probs in, [N] weights out.

The weight of a token is a bounded form of r = pi / behavior, detached, where pi is the policy that
the loss does not reach by a ratio of its own. ``level`` says over what r is taken, ``correction``
how it is bounded. Pure torch on one-dimensional tensors; no model, no config. ``segments`` [N] says
which sequence a token belongs to, counted from 0; a sequence must be there whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learners.divergences import check_rank_one

Correction = Literal["none", "clip", "truncate", "mask"]
Level = Literal["token", "sequence", "geometric"]

LOG_RATIO_BOUND = 20.0
"""Keeps squares of ratios finite where they are only reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceWeights:
    """What the policy loss of each token is multiplied by. No gradient flows through it."""

    weights: Tensor
    """[N], not negative; exactly 1 where the log-ratio is 0."""
    is_clipped: Tensor
    """[N] boolean: the weight is a bound, and not the ratio."""
    is_masked: Tensor
    """[N] boolean: the weight is 0, because the ratio left the band."""


def off_policy_log_ratio(
    policy_logprobs: Tensor, behavior_logprobs: Tensor, is_corrected: Tensor
) -> Tensor:
    """[N] sg(ln policy - ln behavior) where ``is_corrected`` [N], else 0: a ratio of exactly 1."""
    check_rank_one(policy=policy_logprobs, behavior=behavior_logprobs, is_corrected=is_corrected)
    log_ratio = (policy_logprobs - behavior_logprobs).detach()
    return torch.where(is_corrected, log_ratio, torch.zeros_like(log_ratio))


def sequence_log_ratio(log_ratio: Tensor, segments: Tensor) -> Tensor:
    """[N] sum of the log-ratios of the token's sequence: ln of pi(y) / behavior(y).

    The weight of a whole answer, unbiased but with a variance that grows with its length. Sequence
    TIS and MIS: Liu et al. (2025), "When Speed Kills Stability".
    """
    check_rank_one(log_ratio=log_ratio, segments=segments)
    return _per_segment(log_ratio, segments)[segments]


def geometric_log_ratio(log_ratio: Tensor, segments: Tensor) -> Tensor:
    """[N] mean of the log-ratios of the token's sequence: ln of (pi(y) / behavior(y))^(1 / |y|).

    The ratio of GSPO (arXiv 2507.18071, equation 7): no variance from length, but no longer an
    unbiased weight. |y| counts the trained tokens.
    """
    check_rank_one(log_ratio=log_ratio, segments=segments)
    counts = _per_segment(torch.ones_like(log_ratio), segments)
    return (_per_segment(log_ratio, segments) / counts)[segments]


def clipped_weights(log_ratio: Tensor, low: float, high: float) -> ImportanceWeights:
    """clip(r, low, high).

    With [1 - eps, 1 + eps] it is what CPGD multiplies advantages with from the second inner epoch
    on (arXiv 2505.12504, section 5); OpenRLHF's ``is_correction_mode: clip``.
    """
    ratio = _ratio(log_ratio)
    return ImportanceWeights(
        weights=ratio.clamp(low, high),
        is_clipped=(ratio < low) | (ratio > high),
        is_masked=torch.zeros_like(ratio, dtype=torch.bool),
    )


def truncated_weights(log_ratio: Tensor, high: float) -> ImportanceWeights:
    """min(r, high): truncated importance sampling, TIS.

    Ionides (2008); Yao et al. (2025), "Your Efficient RL Framework Secretly Brings You Off-Policy
    RL Training". Around a proximal policy it is the weight of decoupled PPO (arXiv 2110.00641).
    """
    return clipped_weights(log_ratio, 0.0, high)


def masked_weights(
    log_ratio: Tensor, gate_log_ratio: Tensor, low: float, high: float
) -> ImportanceWeights:
    """r of the token where the gate's ratio lies in [low, high], else 0.

    With the token's own ratio as gate this is ICEPOP (Ring-1T, arXiv 2510.18855); with the ratio of
    its sequence, masked importance sampling (MIS; OpenRLHF's level ``seq`` has the geometric one).
    """
    check_rank_one(log_ratio=log_ratio, gate=gate_log_ratio)
    gate = _ratio(gate_log_ratio)
    is_masked = (gate < low) | (gate > high)
    ratio = _ratio(log_ratio)
    return ImportanceWeights(
        weights=torch.where(is_masked, torch.zeros_like(ratio), ratio),
        is_clipped=torch.zeros_like(is_masked),
        is_masked=is_masked,
    )


def importance_weights(
    log_ratio: Tensor,
    segments: Tensor,
    *,
    correction: Correction,
    level: Level,
    low: float,
    high: float,
) -> ImportanceWeights:
    """[N] log-ratios and sequence numbers to weights. ``none`` is 1; ``truncate`` needs no ``low``.

    Under ``mask`` the level is that of the gate, and what passes keeps the ratio of its token;
    otherwise all tokens of a sequence share its bounded ratio, unless the level is ``token``.
    """
    check_rank_one(log_ratio=log_ratio, segments=segments)
    unit = log_ratio
    if level == "sequence":
        unit = sequence_log_ratio(log_ratio, segments)
    elif level == "geometric":
        unit = geometric_log_ratio(log_ratio, segments)
    if correction == "clip":
        return clipped_weights(unit, low, high)
    if correction == "truncate":
        return truncated_weights(unit, high)
    if correction == "mask":
        return masked_weights(log_ratio, unit, low, high)
    return clipped_weights(torch.zeros_like(log_ratio), 1.0, 1.0)


def effective_sample_sums(log_ratio: Tensor) -> tuple[float, float]:
    """Sums of r and r^2. With n tokens, (sum r)^2 / (n sum r^2) is Kish's effective sample size as
    a share of n: 1 on policy, 1 / n if one token has all the weight."""
    ratio = log_ratio.detach().double().clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    return ratio.sum().item(), ratio.square().sum().item()


def _ratio(log_ratio: Tensor) -> Tensor:
    """May be infinite: every bound and every gate takes that as too large."""
    check_rank_one(log_ratio=log_ratio)
    return log_ratio.detach().exp()


def _per_segment(values: Tensor, segments: Tensor) -> Tensor:
    sums = values.new_zeros(int(segments.max()) + 1 if segments.numel() else 0)
    return sums.index_add(0, segments, values)
