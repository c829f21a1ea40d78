"""One optimizer step: samples in, new weights and telemetry out. The objective reads as a formula
in ``_losses``; everything above it is the same for every objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.advantages import compute_advantages
from learners.aggregation import token_weights
from learners.deepspeed_engine import DeepspeedEngine
from learners.objectives import (
    correct_for_staleness,
    cpg_loss,
    drift,
    is_clipped,
    kl_estimate,
    ppo_clip_loss,
)
from learners.packing import PackedRow, pack
from safeladder.config import Config
from safeladder.errors import DivergedError
from safeladder.records import TrainingSample

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStreams:
    """What the objective needs of each trained token of a row, [N] each."""

    advantages: Tensor
    weights: Tensor
    behavior_logprobs: Tensor
    is_stale: Tensor
    """Older than the learner's version."""
    reference_logprobs: Tensor | None


def warmed_up(peak: float, step: int, warmup_steps: int) -> float:
    """Learning rate of the ``step``-th step (from 1): linear, then constant."""
    return peak * min(1.0, step / max(warmup_steps, 1))


def update_policy(
    engine: DeepspeedEngine, samples: Sequence[TrainingSample], version: int, config: Config
) -> dict[str, float]:
    """Train ``learner.epochs`` passes over the samples, one optimizer update each. *Collective.*

    ``version`` is the policy version before the step. Raises ``DivergedError`` if a loss or the
    gradient norm is not finite, ``ValueError`` for samples that cannot be trained.
    """
    objective, learner = config.learner.objective, config.learner
    staleness = _staleness(samples, version, config)
    keys = [s.group for s in samples]
    advantages = compute_advantages(
        [s.reward for s in samples],
        keys,
        weight=objective.group_weight,
        weight_cap=objective.group_weight_cap,
    )
    weights = token_weights([s.loss_mask for s in samples], keys, objective.aggregation)
    rows = pack(samples, ranks=engine.world_size, budget=learner.micro_batch_tokens)[engine.rank]
    streams = [
        _streams(row, samples, advantages, weights, version, engine) if row.pieces else None
        for row in rows
    ]
    lr = warmed_up(learner.lr, version + 1, learner.warmup_steps)
    totals = dict.fromkeys(_SUMS, 0.0)
    norms: list[float] = []
    ratio_max = 0.0
    for epoch in range(learner.epochs):
        sums, ratio = _accumulate(engine, rows, streams, epoch, config)
        if not math.isfinite(sums["loss"]):
            raise DivergedError(f"the loss is {sums['loss']} at step {version + 1}")
        norms.append(engine.step(lr))
        totals = {name: totals[name] + sums[name] for name in _SUMS}
        ratio_max = max(ratio_max, ratio)
    return {
        **_averages(totals, learner.epochs),
        **_batch_metrics(samples, advantages, staleness),
        "ratio_max": ratio_max,
        "grad_norm": max(norms),
        "lr": lr,
        "micro_batches": float(len(rows)),
    }


def _accumulate(
    engine: DeepspeedEngine,
    rows: Sequence[PackedRow],
    streams: Sequence[TokenStreams | None],
    epoch: int,
    config: Config,
) -> tuple[dict[str, float], float]:
    """Forward and backward over all rows; the sums and the largest ratio of all ranks."""
    sums = dict.fromkeys(_SUMS, 0.0)
    ratio_max = 0.0
    for index, (row, stream) in enumerate(zip(rows, streams, strict=True)):
        logprobs = engine.logprobs(row)
        if stream is None:
            loss = logprobs.sum() * 0.0
        else:
            losses = _losses(logprobs, stream, epoch > 0, config)
            loss = (stream.weights * losses).sum()
            sums["loss"] += loss.item()
            for name, value in _telemetry(logprobs.detach(), stream, config).items():
                sums[name] += value
            ratio = (logprobs.detach() - stream.behavior_logprobs).exp().max()
            ratio_max = max(ratio_max, ratio.item())
        engine.backward(loss, last=index == len(rows) - 1)
    largest = engine.reduce({"ratio_max": ratio_max}, "max")
    return engine.reduce(sums, "sum"), largest["ratio_max"]


def _staleness(samples: Sequence[TrainingSample], version: int, config: Config) -> list[int]:
    """Learner version minus the oldest token version, of each sample with tokens."""
    found = [
        (version - int(s.token_versions.min()), version - int(s.token_versions.max()))
        for s in samples
        if s.token_versions.size
    ]
    if not found:
        raise ValueError("the batch has no sampled token")
    oldest, newest = max(f[0] for f in found), min(f[1] for f in found)
    if newest < 0 or oldest > config.schedule.max_staleness:
        raise ValueError(
            f"token staleness runs from {newest} to {oldest} at version {version}; it must lie in "
            f"0 .. {config.schedule.max_staleness} (schedule.max_staleness)"
        )
    return [f[0] for f in found]


def _streams(
    row: PackedRow,
    samples: Sequence[TrainingSample],
    advantages: Array,
    weights: Sequence[Array],
    version: int,
    engine: DeepspeedEngine,
) -> TokenStreams:
    def stream(arrays: Sequence[Array]) -> Tensor:
        return torch.from_numpy(row.gather(arrays).astype(np.float32)).to(engine.device)

    references = [s.reference_logprobs for s in samples]
    spread = [np.full(s.tokens.shape, a) for s, a in zip(samples, advantages, strict=True)]
    return TokenStreams(
        advantages=stream(spread),
        weights=stream(weights),
        behavior_logprobs=stream([s.behavior_logprobs for s in samples]),
        is_stale=stream([s.token_versions < version for s in samples]).bool(),
        reference_logprobs=stream([r for r in references if r is not None])
        if all(r is not None for r in references)
        else None,
    )


def _losses(logprobs: Tensor, stream: TokenStreams, is_later_epoch: bool, config: Config) -> Tensor:
    """[N] policy loss + alpha * drift + beta * KL to the reference."""
    objective, behavior = config.learner.objective, stream.behavior_logprobs
    epsilon = objective.clip_epsilon
    if objective.policy_loss == "cpg":
        # One update an epoch: what is computed here is the policy that the last one left.
        off_policy = stream.is_stale | is_later_epoch
        advantages = correct_for_staleness(
            stream.advantages, logprobs.detach(), behavior, off_policy, epsilon
        )
        losses = cpg_loss(logprobs, behavior, advantages, epsilon)
    else:
        losses = ppo_clip_loss(logprobs, behavior, stream.advantages, epsilon)
    if objective.drift_weight > 0:
        losses = losses + objective.drift_weight * drift(logprobs, behavior, objective.drift_cap)
    if config.reference.kl_coefficient > 0:
        if stream.reference_logprobs is None:
            raise ValueError("reference.kl_coefficient is set, but a sample has no reference")
        kl = kl_estimate(logprobs, stream.reference_logprobs, config.reference.kl_estimator)
        losses = losses + config.reference.kl_coefficient * kl
    return losses


_SUMS = ("tokens", "clipped", "drift", "kl_behavior", "kl_reference", "priced", "surprise", "loss")


def _telemetry(logprobs: Tensor, stream: TokenStreams, config: Config) -> dict[str, float]:
    """Sums over the row's trained tokens."""
    objective, behavior = config.learner.objective, stream.behavior_logprobs
    clipped = is_clipped(logprobs, behavior, stream.advantages, objective.clip_epsilon)
    sums = {
        "tokens": float(logprobs.numel()),
        "clipped": clipped.sum().item(),
        "drift": drift(logprobs, behavior, objective.drift_cap).sum().item(),
        "kl_behavior": kl_estimate(behavior, logprobs, "k3").sum().item(),
        "surprise": -logprobs.sum().item(),
    }
    if stream.reference_logprobs is not None:
        estimator = config.reference.kl_estimator
        sums["kl_reference"] = (
            kl_estimate(logprobs, stream.reference_logprobs, estimator).sum().item()
        )
        sums["priced"] = sums["tokens"]
    return sums


def _averages(sums: Mapping[str, float], epochs: int) -> dict[str, float]:
    """Means over trained tokens and inner epochs; the KL to the reference only if it was given."""
    tokens = sums["tokens"]
    metrics = {
        "loss": sums["loss"] / epochs,
        "clip_fraction": sums["clipped"] / tokens,
        "drift": sums["drift"] / tokens,
        "kl_behavior": sums["kl_behavior"] / tokens,
        "entropy": sums["surprise"] / tokens,
        "trained_tokens": tokens / epochs,
    }
    if sums["priced"]:
        metrics["kl_reference"] = sums["kl_reference"] / sums["priced"]
    return metrics


def _batch_metrics(
    samples: Sequence[TrainingSample],
    advantages: Array,
    staleness: Sequence[int],
) -> dict[str, float]:
    groups = {s.group for s in samples}
    varied = {s.group for s, a in zip(samples, advantages, strict=True) if a != 0}
    return {
        "samples": float(len(samples)),
        "groups": float(len(groups)),
        "zero_variance_groups": float(len(groups) - len(varied)),
        "reward_mean": float(np.mean([s.reward for s in samples])),
        "length_mean": float(np.mean([s.tokens.size for s in samples])),
        "truncated_share": float(np.mean([s.finish_reason == "length" for s in samples])),
        "staleness_mean": float(np.mean(staleness)),
        "staleness_max": float(max(staleness)),
    }
