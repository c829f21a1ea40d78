"""A stage on an engine that is a table of logits: what it trains, measures and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.row_plan import RowPlan
from learners.stage import StageTrainer
from learners.supervised import SftRow, SftTask, train_supervised
from safeladder.config import SftConfig
from safeladder.errors import DivergedError
from tests.learners.test_policy_update import VOCABULARY, TableEngine


def rows(count: int = 7) -> list[SftRow]:
    random = np.random.default_rng(3)
    return [
        SftRow(
            prompt_tokens=np.array([1, index], np.int32),
            tokens=random.integers(0, VOCABULARY, 1 + index % 4).astype(np.int32),
        )
        for index in range(count)
    ]


def settings(**changes: Any) -> SftConfig:
    sft = {"data": (Path("rows.jsonl"),), "lr": 0.3, "batch_size": 3, "epochs": 2, **changes}
    return SftConfig(**sft)


def trainer(engine: Any, **changes: Any) -> StageTrainer:
    plan = RowPlan(7, settings(**changes), seed=1)
    return StageTrainer(engine, SftTask(rows()), plan, 64)


def test_a_step_is_the_mean_over_all_tokens_of_the_batch() -> None:
    engine = TableEngine()
    start = engine.logits.detach().clone().requires_grad_()
    batch = [rows()[index] for index in RowPlan(7, settings(), seed=1).rows(1)]
    logprobs = start.log_softmax(-1)
    tokens = [int(token) for row in batch for token in row.tokens]
    loss = -torch.stack([logprobs[token] for token in tokens]).mean()
    loss.backward()
    figures = trainer(engine).step(1)
    assert figures["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert figures["trained_tokens"] == len(tokens)
    torch.testing.assert_close(engine.logits.detach(), start.detach() - 0.3 * start.grad)


def test_validation_rows_are_measured_and_move_nothing() -> None:
    engine = TableEngine()
    before = engine.logits.detach().clone()
    figures = trainer(engine, validation_share=0.5).measure()
    plan = RowPlan(7, settings(validation_share=0.5), seed=1)
    tokens = [int(token) for index in plan.validation for token in rows()[index].tokens]
    expected = -before.log_softmax(-1)[torch.tensor(tokens)].mean()
    assert figures["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(engine.logits, before)
    assert engine.logits.grad is None
    assert trainer(engine).measure() == {}


def test_a_loss_that_is_not_finite_ends_the_stage() -> None:
    engine = TableEngine()
    with torch.no_grad():
        engine.logits[:] = float("nan")
    with pytest.raises(DivergedError, match="the loss of the stage is nan"):
        trainer(engine).step(1)


def test_the_rung_before_rl_is_the_same_steps_between_two_fresh_optimizers() -> None:
    resets = []

    class Counting(TableEngine):
        def reset_optimizer(self) -> None:
            resets.append(self.forwards)

    rung, stage = Counting(), TableEngine()
    told = train_supervised(rung, rows(), settings(validation_share=0.5), budget=64, seed=1)  # type: ignore[arg-type]
    steps = trainer(stage)
    losses = [steps.step(n) for n in range(1, 7)]
    torch.testing.assert_close(rung.logits, stage.logits)
    weights = [figures["weight"] for figures in losses[3:]]
    mean = sum(w * f["loss"] for w, f in zip(weights, losses[3:], strict=True)) / sum(weights)
    assert (told["updates"], told["loss"]) == (6.0, pytest.approx(mean))
    assert resets == [0, rung.forwards]
