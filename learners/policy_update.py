"""One optimizer step: samples in, new weights and telemetry out. The objective reads as a formula
in ``_losses``; everything above it is the same for every objective.

There is one update an inner epoch, so the first epoch's own forward pass is that of the policy
before the step: it gives the proximal log-probs, and a decoupled objective costs no pass more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.advantages import compute_advantages
from learners.aggregation import token_weights
from learners.deepspeed_engine import DeepspeedEngine
from learners.objectives import cpg_loss, drift, kl_estimate, ppo_clip_loss
from learners.off_policy import ImportanceWeights, importance_weights, off_policy_log_ratio
from learners.packing import PackedRow, pack
from learners.step_telemetry import (
    MAXIMA,
    SUMS,
    batch_metrics,
    pass_metrics,
    staleness_shares,
    token_sums,
)
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
    segments: Tensor
    """Which completion of the row the token belongs to, from 0."""


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
    proximal: dict[int, Tensor] = {}
    epochs: list[dict[str, float]] = []
    norms: list[float] = []
    maxima = dict.fromkeys(MAXIMA, 0.0)
    for epoch in range(learner.epochs):
        sums, largest = _accumulate(engine, rows, streams, proximal, epoch, config)
        if not math.isfinite(sums["loss"]):
            raise DivergedError(f"the loss is {sums['loss']} at step {version + 1}")
        norms.append(engine.step(lr))
        epochs.append(sums)
        maxima = {name: max(maxima[name], largest[name]) for name in MAXIMA}
    return {
        **pass_metrics(epochs),
        **batch_metrics(samples, advantages, staleness),
        **staleness_shares(samples, version, config.schedule.max_staleness),
        **maxima,
        "grad_norm": max(norms),
        "lr": lr,
        "micro_batches": float(len(rows)),
    }


def _accumulate(
    engine: DeepspeedEngine,
    rows: Sequence[PackedRow],
    streams: Sequence[TokenStreams | None],
    proximal: dict[int, Tensor],
    epoch: int,
    config: Config,
) -> tuple[dict[str, float], dict[str, float]]:
    """Forward and backward over all rows; the sums and the maxima over all ranks. ``proximal`` has
    the log-probs of each row before the first update, and is filled in the first epoch."""
    sums, maxima = dict.fromkeys(SUMS, 0.0), dict.fromkeys(MAXIMA, 0.0)
    for index, (row, stream) in enumerate(zip(rows, streams, strict=True)):
        logprobs = engine.logprobs(row)
        now = logprobs.detach()
        before = proximal.setdefault(index, now)
        if stream is None:
            loss = logprobs.sum() * 0.0
        else:
            weights = _weights(now, before, stream, epoch > 0, config)
            anchor = _anchor(before, stream, config)
            losses = _losses(logprobs, anchor, weights.weights, stream, config)
            loss = (stream.weights * losses).sum()
            own, largest = token_sums(
                now,
                anchor,
                stream.behavior_logprobs,
                stream.reference_logprobs,
                stream.advantages,
                weights,
                config,
            )
            own["loss"] = loss.item()
            sums |= {name: sums[name] + value for name, value in own.items()}
            maxima = {name: max(maxima[name], largest[name]) for name in MAXIMA}
        engine.backward(loss, last=index == len(rows) - 1)
    return engine.reduce(sums, "sum"), engine.reduce(maxima, "max")


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
        segments=torch.from_numpy(row.completions()).to(engine.device),
    )


def _anchor(before: Tensor, stream: TokenStreams, config: Config) -> Tensor:
    """[N] log-probs of the policy around which the trust region lies."""
    is_proximal = config.learner.objective.off_policy.anchor == "proximal"
    return before if is_proximal else stream.behavior_logprobs


def _weights(
    now: Tensor, before: Tensor, stream: TokenStreams, is_later_epoch: bool, config: Config
) -> ImportanceWeights:
    """What is left to correct once the ratio of the loss itself is taken into account."""
    objective = config.learner.objective
    rule = objective.off_policy
    # The log-ratio of CPG is no weight: all that lies between sampling and this pass is corrected.
    # PPO's ratio starts from the policy before the step: what lies before that is.
    is_cpg = objective.policy_loss == "cpg"
    is_corrected = stream.is_stale | (rule.tokens == "all") | (is_later_epoch and is_cpg)
    log_ratio = off_policy_log_ratio(
        now if is_cpg else before, stream.behavior_logprobs, is_corrected
    )
    low, high = objective.ratio_bounds
    return importance_weights(
        log_ratio,
        stream.segments,
        correction=objective.correction,
        level=rule.level,
        low=low,
        high=high,
    )


def _losses(
    logprobs: Tensor, anchor: Tensor, weights: Tensor, stream: TokenStreams, config: Config
) -> Tensor:
    """[N] importance weight * policy loss + alpha * drift + beta * KL to the reference."""
    objective, behavior = config.learner.objective, stream.behavior_logprobs
    policy_loss = cpg_loss if objective.policy_loss == "cpg" else ppo_clip_loss
    losses = weights * policy_loss(logprobs, anchor, stream.advantages, objective.clip_epsilon)
    if objective.drift_weight > 0:
        losses = losses + objective.drift_weight * drift(logprobs, behavior, objective.drift_cap)
    if config.reference.kl_coefficient > 0:
        if stream.reference_logprobs is None:
            raise ValueError("reference.kl_coefficient is set, but a sample has no reference")
        kl = kl_estimate(logprobs, stream.reference_logprobs, config.reference.kl_estimator)
        losses = losses + config.reference.kl_coefficient * kl
    return losses
