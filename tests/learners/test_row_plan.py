"""Which rows a step trains: every row once in a pass, the same whenever it is asked."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from learners.row_plan import RowPlan
from safeladder.config import SftConfig


def plan(num_rows: int = 10, max_steps: int = 0, **settings: Any) -> RowPlan:
    sft = {"data": (Path("rows.jsonl"),), "epochs": 3, "batch_size": 4, "lr": 0.1, **settings}
    return RowPlan(num_rows, SftConfig(**sft), seed=5, max_steps=max_steps)


def test_a_pass_trains_every_row_once_and_the_last_step_what_is_left() -> None:
    rows = plan()
    assert rows.num_steps == 9
    for epoch in range(3):
        steps = [rows.rows(3 * epoch + n) for n in (1, 2, 3)]
        assert [len(step) for step in steps] == [4, 4, 2]
        assert sorted(chain.from_iterable(steps)) == list(range(10))


def test_passes_differ_and_a_step_is_the_same_whenever_it_is_asked() -> None:
    first = plan()
    assert [first.rows(n) for n in (1, 2, 3)] != [first.rows(n) for n in (4, 5, 6)]
    assert plan().rows(5) == first.rows(5)


def test_rows_for_validation_are_never_trained() -> None:
    rows = plan(validation_share=0.3)
    assert len(rows.validation) == 3
    trained = {row for step in range(1, rows.num_steps + 1) for row in rows.rows(step)}
    assert trained == set(range(10)) - set(rows.validation)


def test_the_bound_on_steps_ends_the_stage_sooner_and_never_later() -> None:
    assert (plan(max_steps=5).num_steps, plan(max_steps=50).num_steps) == (5, 9)


def test_the_learning_rate_rises_and_falls_as_the_schedule_says() -> None:
    rows = plan(num_rows=40, epochs=1, schedule="cosine", warmup_ratio=0.2)
    rates = [rows.learning_rate(n) for n in range(1, 11)]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    # (1 + cos(pi * k / 8)) / 2 of the peak, k steps after the warm-up
    assert rates[6] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.1 * 0.038060, abs=1e-6)
    constant = plan(num_rows=40, epochs=1, warmup_ratio=0.2)
    assert [constant.learning_rate(n) for n in (1, 2, 10)] == pytest.approx([0.05, 0.1, 0.1])
