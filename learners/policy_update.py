"""One optimizer step: samples in, new weights and telemetry out. What a token's loss is stands in
``composed_loss``, what its advantage is in ``token_advantages``; this is the same for every
objective.

There is one update an inner epoch, so the first epoch's own forward pass is that of the policy
before the step: it gives the proximal log-probs, and a decoupled objective costs no pass more. A
value head is asked before the advantages are known, and costs a pass without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.aggregation import token_weights
from learners.batch_images import image_metrics
from learners.composed_loss import (
    TokenStreams,
    anchor_of,
    losses,
    token_streams,
    value_losses,
    weights_of,
)
from learners.deepspeed_engine import DeepspeedEngine
from learners.packing import PackedRow, pack
from learners.step_telemetry import (
    MAXIMA,
    SUMS,
    batch_metrics,
    pass_metrics,
    staleness_shares,
    token_sums,
)
from learners.token_advantages import token_advantages
from safeladder.config import Config
from safeladder.errors import DivergedError
from safeladder.records import TrainingSample

Array = npt.NDArray[Any]


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
    learner = config.learner
    staleness = _staleness(samples, version, config)
    rows = pack(samples, ranks=engine.world_size, budget=learner.micro_batch_tokens)[engine.rank]
    streams, penalties = _streams(engine, rows, samples, version, config)
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
        **batch_metrics(samples, penalties, staleness),
        **image_metrics(samples),
        **staleness_shares(samples, version, config.schedule.max_staleness),
        **maxima,
        "grad_norm": max(norms),
        "lr": lr,
        "micro_batches": float(len(rows)),
    }


def _streams(
    engine: DeepspeedEngine,
    rows: Sequence[PackedRow],
    samples: Sequence[TrainingSample],
    version: int,
    config: Config,
) -> tuple[list[TokenStreams | None], Array]:
    """The streams of every row, None for padding; and [N] penalties for the samples' lengths."""
    objective = config.learner.objective
    has_values = objective.advantage == "gae"
    values = _values(engine, rows) if has_values else [None] * len(rows)
    by_sample = _by_sample(rows, values) if has_values else None
    found = token_advantages(
        samples, config, version + 1, by_sample, lambda sums: engine.reduce(sums, "sum")
    )
    weights = token_weights(
        [s.loss_mask for s in samples],
        [s.group for s in samples],
        objective.aggregation,
        config.rollout.max_new_tokens,
    )
    return [
        token_streams(row, samples, found, weights, version, engine.device, own)
        if row.pieces
        else None
        for row, own in zip(rows, values, strict=True)
    ], found.penalties


def _values(engine: DeepspeedEngine, rows: Sequence[PackedRow]) -> list[Tensor | None]:
    """[N] of each row: what the value head says before the step."""
    with torch.no_grad():
        return [engine.logprobs_and_values(row)[1] for row in rows]


def _by_sample(rows: Sequence[PackedRow], values: Sequence[Tensor | None]) -> Mapping[int, Array]:
    """Sample → [n] values before its trained tokens."""
    found: dict[int, Array] = {}
    for row, own in zip(rows, values, strict=True):
        if own is not None and row.pieces:
            ends = np.cumsum([piece.trained.size for piece in row.pieces])
            parts = np.split(own.cpu().numpy(), ends[:-1])
            found |= {p.sequence: part for p, part in zip(row.pieces, parts, strict=True)}
    return found


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
    objective = config.learner.objective
    for index, (row, stream) in enumerate(zip(rows, streams, strict=True)):
        values: Tensor | None = None
        if objective.advantage == "gae":
            logprobs, values = engine.logprobs_and_values(row)
        else:
            logprobs = engine.logprobs(row)
        now = logprobs.detach()
        before = proximal.setdefault(index, now)
        if stream is None:
            loss = logprobs.sum() * 0.0
        else:
            weights = weights_of(now, before, stream, epoch > 0, config)
            anchor = anchor_of(before, stream, config)
            token_losses = losses(logprobs, anchor, weights.weights, stream, config)
            own, largest = token_sums(now, anchor, stream, weights, config)
            if values is not None:
                errors = value_losses(values, stream, config)
                own["value_loss"] = errors.sum().item()
                token_losses = token_losses + objective.value.coefficient * errors
            loss = (stream.weights * token_losses).sum()
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
