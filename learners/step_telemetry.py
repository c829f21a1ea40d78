"""What a step tells about itself: sums over the trained tokens of all ranks, then shares and means.

Everything about how far the batch is off policy is measured before the first update of the step;
what training did (loss, trust region, drift) is the mean over its inner epochs. The names stand in
``docs/off-policy.md``. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from learners.composed_loss import TokenStreams, is_outside
from learners.divergences import drift, kl_estimate
from learners.off_policy import ImportanceWeights, effective_sample_sums
from safeladder.config import Config
from safeladder.records import GroupKey, TrainingSample

Array = npt.NDArray[Any]

SUMS = (
    "loss", "tokens", "clipped", "drift", "surprise", "kl_reference", "priced", "weight",
    "weight_clipped", "masked", "kl_k1", "kl_k3", "ratio", "ratio_squared", "value_loss",
    "valued", "value_error", "return", "return_squared",
)  # fmt: skip
"""Over the trained tokens of a pass; ``loss`` and ``value_loss`` are filled in by the update."""
MAXIMA = ("ratio_max", "weight_max")


def token_sums(
    logprobs: Tensor,
    anchor: Tensor,
    stream: TokenStreams,
    weights: ImportanceWeights,
    config: Config,
) -> tuple[dict[str, float], dict[str, float]]:
    """The sums but ``loss``, and the maxima, of one row. ``logprobs`` [N] carry no gradient."""
    objective = config.learner.objective
    behavior, reference = stream.behavior_logprobs, stream.reference_logprobs
    log_ratio = logprobs - behavior
    ratio, ratio_squared = effective_sample_sums(log_ratio)
    outside = is_outside(logprobs, anchor, stream, objective)
    sums = {
        "tokens": float(logprobs.numel()),
        "clipped": outside.sum().item(),
        "drift": drift(logprobs, behavior, objective.drift_cap).sum().item(),
        "surprise": -logprobs.sum().item(),
        "weight": weights.weights.sum().item(),
        "weight_clipped": weights.is_clipped.sum().item(),
        "masked": weights.is_masked.sum().item(),
        "kl_k1": kl_estimate(behavior, logprobs, "k1").sum().item(),
        "kl_k3": kl_estimate(behavior, logprobs, "k3").sum().item(),
        "ratio": ratio,
        "ratio_squared": ratio_squared,
    }
    if reference is not None:
        estimator = config.reference.kl_estimator
        sums["kl_reference"] = kl_estimate(logprobs, reference, estimator).sum().item()
        sums["priced"] = sums["tokens"]
    if stream.values is not None and stream.returns is not None:
        returns = stream.returns.double()
        sums["valued"] = sums["tokens"]
        sums["value_error"] = (stream.values - returns).square().sum().item()
        sums["return"] = returns.sum().item()
        sums["return_squared"] = returns.square().sum().item()
    maxima = {
        "ratio_max": log_ratio.exp().max().item(),
        "weight_max": weights.weights.max().item(),
    }
    return sums, maxima


def pass_metrics(epochs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of the sums of each inner epoch; the KL to the reference and what a value head did
    only if there was one."""
    first, total = epochs[0], {name: sum(sums[name] for sums in epochs) for name in SUMS}
    tokens, trained = total["tokens"], first["tokens"]
    metrics = {
        "loss": total["loss"] / len(epochs),
        "clip_fraction": total["clipped"] / tokens,
        "drift": total["drift"] / tokens,
        "entropy": total["surprise"] / tokens,
        "weight_mean": total["weight"] / tokens,
        "weight_clipped_share": total["weight_clipped"] / tokens,
        "masked_share": total["masked"] / tokens,
        "kl_behavior": first["kl_k3"] / trained,
        "kl_behavior_k1": first["kl_k1"] / trained,
        "effective_sample_share": first["ratio"] ** 2 / (trained * first["ratio_squared"]),
        "trained_tokens": trained,
    }
    if total["priced"]:
        metrics["kl_reference"] = total["kl_reference"] / total["priced"]
    if valued := total["valued"]:
        metrics["value_loss"] = total["value_loss"] / valued
        mean = first["return"] / trained
        variance = first["return_squared"] / trained - mean**2
        if variance > 0:
            metrics["value_explained"] = 1 - first["value_error"] / trained / variance
    return metrics


def batch_metrics(
    samples: Sequence[TrainingSample],
    penalties: Array,
    staleness: Sequence[int],
) -> dict[str, float]:
    """Of the whole batch, from the samples, [N] penalties for their length, and their
    ``staleness`` (oldest token of each)."""
    rewards: dict[GroupKey, set[float]] = {}
    for s, penalty in zip(samples, penalties, strict=True):
        rewards.setdefault(s.group, set()).add(s.reward + penalty)
    groups = rewards.keys()
    varied = [key for key, found in rewards.items() if len(found) > 1]
    return {
        "samples": float(len(samples)),
        "groups": float(len(groups)),
        "zero_variance_groups": float(len(groups) - len(varied)),
        "reward_mean": float(np.mean([s.reward for s in samples])),
        "length_mean": float(np.mean([s.loss_mask.sum() for s in samples])),
        "overlong_penalty": float(np.mean(penalties)),
        "truncated_share": float(np.mean([s.finish_reason == "length" for s in samples])),
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": float(max(staleness)),
    }


def staleness_shares(
    samples: Sequence[TrainingSample], version: int, bound: int
) -> dict[str, float]:
    """``staleness_share_K`` for K from 0 to ``bound``: share of the trained tokens that are K
    versions older than ``version``. They sum to 1."""
    ages = np.concatenate([version - s.token_versions[s.loss_mask > 0] for s in samples])
    counts = np.bincount(ages, minlength=bound + 1)
    return {f"staleness_share_{k}": float(n) / ages.size for k, n in enumerate(counts)}
