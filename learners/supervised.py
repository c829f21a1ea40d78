"""The supervised rung: negative log-likelihood of given answers, on RL's own engine."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.deepspeed_engine import DeepspeedEngine
from learners.packing import pack
from safeladder.config import SftConfig
from safeladder.errors import DivergedError
from safeladder.records import Floats, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One demonstration as token ids, rendered through the chat template by the caller."""

    prompt_tokens: Tokens
    """[P]"""
    tokens: Tokens
    """[T] the answer, with its stop token: all of it is trained."""

    @property
    def loss_mask(self) -> Floats:
        """[T] ones."""
        return np.ones(self.tokens.shape, np.float32)


def train_supervised(
    engine: DeepspeedEngine, rows: Sequence[SftRow], sft: SftConfig, *, budget: int, seed: int
) -> dict[str, float]:
    """``sft.epochs`` passes in batches of ``sft.batch_size`` rows, shuffled by (seed, epoch); the
    optimizer starts and ends at zero. *Collective.*

    Returns ``loss_first`` and ``loss``, the mean loss per trained token in the first and the last
    pass, and ``updates``, the optimizer updates made.
    Raises ``DivergedError`` if a loss is not finite.
    """
    engine.reset_optimizer()
    epoch_losses: list[float] = []
    updates = 0
    for epoch in range(sft.epochs):
        order = list(rows)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        summed, tokens = 0.0, 0
        for start in range(0, len(order), sft.batch_size):
            batch = order[start : start + sft.batch_size]
            count = sum(row.tokens.size for row in batch)
            summed += count * _step(engine, batch, count, sft.lr, budget)
            tokens += count
            updates += 1
        epoch_losses.append(summed / tokens)
    engine.reset_optimizer()
    return {
        "loss_first": epoch_losses[0],
        "loss": epoch_losses[-1],
        "updates": float(updates),
    }


def _step(
    engine: DeepspeedEngine, batch: Sequence[SftRow], count: int, lr: float, budget: int
) -> float:
    """One update; the mean loss over all trained tokens of the batch, on every rank."""
    own = 0.0
    packed = pack(batch, ranks=engine.world_size, budget=budget)[engine.rank]
    for index, row in enumerate(packed):
        loss = -engine.logprobs(row).sum() / count * (1.0 if row.pieces else 0.0)
        own += loss.item()
        engine.backward(loss, last=index == len(packed) - 1)
    total = engine.reduce({"loss": own}, "sum")["loss"]
    if not math.isfinite(total):
        raise DivergedError(f"the supervised loss is {total}")
    engine.step(lr)
    return total
