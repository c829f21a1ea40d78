"""A stage that passes over rows: one batch of rows in, one optimizer step out, whatever the rows
are. What a row is and how its loss is computed is a *task*: ``supervised``, ``preference`` and
``value_model``.

A batch is packed like samples of RL, and a loss brings its global weights, so that the gradient
depends neither on ranks nor on micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from learners.packing import Packable, PackedRow, pack
from learners.row_plan import RowPlan
from safeladder.errors import DivergedError


class Batch(Protocol):
    """Rows that are trained together."""

    @property
    def sequences(self) -> Sequence[Packable]:
        """What is packed."""
        ...

    @property
    def bundles(self) -> Sequence[Sequence[int]] | None:
        """Sequences that must lie in one packed row; None leaves it to the packing."""
        ...

    @property
    def weight(self) -> float:
        """What the batch counts for in a mean over batches: trained tokens, pairs, targets."""
        ...

    def loss(self, outputs: Tensor, row: PackedRow) -> tuple[Tensor, dict[str, float]]:
        """The row's share of the loss of the whole batch, and of each of the task's figures."""
        ...


class Task(Protocol):
    """Rows of one kind, and their loss."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what is measured; the first is the loss that is trained."""
        ...

    @property
    def num_rows(self) -> int:
        """All of them, those for validation included."""
        ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows, to be trained together."""
        ...

    def outputs(self, engine: DeepspeedEngine, row: PackedRow) -> Tensor:
        """What the loss is made of: [N, ...] for the N wanted tokens of a row. *Collective.*"""
        ...


def accumulate(
    engine: DeepspeedEngine, task: Task, batch: Batch, *, budget: int, train: bool
) -> dict[str, float]:
    """Forward, and backward if ``train``, over a batch; its figures over all ranks. *Collective.*

    Raises ``DivergedError`` if the loss is not finite.
    """
    sums = dict.fromkeys(task.figures, 0.0)
    rows = pack(
        batch.sequences, ranks=engine.world_size, budget=budget, bundles=batch.bundles
    )[engine.rank]  # fmt: skip
    for index, row in enumerate(rows):
        with torch.set_grad_enabled(train):
            outputs = task.outputs(engine, row)
            if row.pieces:
                loss, own = batch.loss(outputs, row)
                sums |= {name: sums[name] + value for name, value in own.items()}
            else:
                loss = outputs.sum() * 0.0
        if train:
            engine.backward(loss, last=index == len(rows) - 1)
    figures = engine.reduce(sums, "sum")
    if not math.isfinite(total := figures[task.figures[0]]):
        raise DivergedError(f"the loss of the stage is {total}")
    return figures


class StageTrainer:
    """A task, the plan of its steps, and the engine that takes them."""

    def __init__(self, engine: DeepspeedEngine, task: Task, plan: RowPlan, budget: int) -> None:
        """``budget``: input tokens of a packed row."""
        self._engine, self._task, self._plan, self._budget = engine, task, plan, budget

    def step(self, step: int) -> dict[str, float]:
        """The ``step``-th optimizer step (from 1). *Collective.* Raises ``DivergedError``."""
        plan = self._plan
        batch = self._task.batch(plan.rows(step))
        figures = accumulate(self._engine, self._task, batch, budget=self._budget, train=True)
        lr = plan.learning_rate(step)
        norm = self._engine.step(lr)
        tokens = sum(float(s.loss_mask.sum()) for s in batch.sequences)
        progress = {"epoch": float(plan.epoch(step)), "trained_tokens": tokens}
        return {**figures, **progress, "weight": batch.weight, "grad_norm": norm, "lr": lr}

    def measure(self) -> dict[str, float]:
        """Mean figures over the rows for validation; empty if there are none. *Collective.*"""
        rows, size = self._plan.validation, self._plan.settings.batch_size
        sums, weight = dict.fromkeys(self._task.figures, 0.0), 0.0
        for start in range(0, len(rows), size):
            batch = self._task.batch(rows[start : start + size])
            figures = accumulate(self._engine, self._task, batch, budget=self._budget, train=False)
            sums = {name: sums[name] + batch.weight * value for name, value in figures.items()}
            weight += batch.weight
        return {name: value / weight for name, value in sums.items()} if weight else {}
