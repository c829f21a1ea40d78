"""Supervised rows: negative log-likelihood of given answers, on RL's own engine. A stage of its
own, or a short rung before RL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from learners.packing import PackedRow
from learners.row_plan import RowPlan
from learners.stage import StageTrainer
from safeladder.config import SftConfig
from safeladder.images import PromptImage
from safeladder.records import Floats, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow:
    """One demonstration as token ids, rendered through the chat template by the caller."""

    prompt_tokens: Tokens
    """[P]"""
    tokens: Tokens
    """[T] the answer, with its stop token: all of it is trained."""
    images: tuple[PromptImage, ...] = ()
    """Of the prompt, without their files."""

    @property
    def loss_mask(self) -> Floats:
        """[T] ones."""
        return np.ones(self.tokens.shape, np.float32)


@dataclass(frozen=True, slots=True)
class SftBatch:
    """The loss is the mean over all trained tokens of the batch."""

    sequences: Sequence[SftRow]
    bundles: None = None

    @property
    def weight(self) -> float:
        """Trained tokens."""
        return float(sum(row.tokens.size for row in self.sequences))

    def loss(self, outputs: Tensor, row: PackedRow) -> tuple[Tensor, dict[str, float]]:
        """[N] log-probs to their share of the mean."""
        loss = -outputs.sum() / self.weight
        return loss, {"loss": loss.item()}


class SftTask:
    """Demonstrations."""

    figures = ("loss",)

    def __init__(self, rows: Sequence[SftRow]) -> None:
        self._rows = rows

    @property
    def num_rows(self) -> int:
        """All of them."""
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> SftBatch:
        """These rows."""
        return SftBatch([self._rows[row] for row in rows])

    def outputs(self, engine: DeepspeedEngine, row: PackedRow) -> Tensor:
        """[N] log-probs."""
        return engine.logprobs(row)


def train_supervised(
    engine: DeepspeedEngine, rows: Sequence[SftRow], sft: SftConfig, *, budget: int, seed: int
) -> dict[str, float]:
    """The rung before RL: ``sft.epochs`` passes in batches of ``sft.batch_size`` rows, shuffled by
    (seed, epoch); the optimizer starts and ends at zero. *Collective.*

    Returns ``loss_first`` and ``loss``, the mean loss per trained token in the first and the last
    pass, and ``updates``, the optimizer updates made.
    Raises ``DivergedError`` if a loss is not finite.
    """
    plan = RowPlan(len(rows), sft, seed, has_validation=False)
    trainer = StageTrainer(engine, SftTask(rows), plan, budget)
    engine.reset_optimizer()
    summed, tokens = [0.0] * sft.epochs, [0.0] * sft.epochs
    for step in range(1, plan.num_steps + 1):
        figures = trainer.step(step)
        summed[plan.epoch(step)] += figures["weight"] * figures["loss"]
        tokens[plan.epoch(step)] += figures["weight"]
    engine.reset_optimizer()
    return {
        "loss_first": summed[0] / tokens[0],
        "loss": summed[-1] / tokens[-1],
        "updates": float(plan.num_steps),
    }
