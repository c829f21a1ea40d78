"""A run's own rows say how near it came to its speed of light, and what stood in the way."""

from __future__ import annotations

import pytest

from cluster.step_gap import StepGap, step_gap

Row = dict[str, float]


def row(step_s: float = 10.0, train_s: float = 9.5, wait_s: float = 0.3, **more: float) -> Row:
    engines = {"engines/busy": 0.8, "engines/idle": 0.2, "engines/loading": 0.0}
    times = {"time/step_s": step_s, "time/train_s": train_s}
    rest = {"learner/wait_s": wait_s, "learner/other_s": max(0.0, step_s - train_s - wait_s)}
    return times | rest | engines | {key.replace("__", "/"): value for key, value in more.items()}


def gap_of(*rows: Row) -> StepGap:
    gap = step_gap(rows)
    assert gap is not None
    return gap


def test_the_bound_is_the_busier_role_and_the_share_is_its_part_of_the_step() -> None:
    gap = gap_of(row())
    assert (gap.light_s, gap.generate_s) == (9.5, 8.0)
    assert gap.share == pytest.approx(0.95)
    assert gap.learner_bubble == pytest.approx(0.03)
    assert gap.engine_bubble == pytest.approx(0.2)


def test_a_learner_that_is_always_busy_is_itself_the_limit() -> None:
    assert gap_of(row()).losses[0].name == "training"


def test_engines_that_are_always_busy_are_themselves_the_limit() -> None:
    slow = row(train_s=2.0, wait_s=8.0, engines__busy=1.0, engines__idle=0.0)
    assert gap_of(slow).losses[0].name == "generation"


def test_idle_engines_beside_a_waiting_learner_point_to_the_bound_of_staleness() -> None:
    alternating = row(train_s=5.0, wait_s=5.0, engines__busy=0.45, engines__idle=0.55)
    first = gap_of(alternating).losses[0]
    assert first.name == "learner waits for groups"
    assert "max_staleness" in first.advice


def test_a_crowded_verifier_is_named() -> None:
    crowded = row(train_s=6.0, wait_s=4.0, engines__busy=0.5, safety__full=0.9, style__full=0.1)
    advice = gap_of(crowded).losses[0].advice
    assert "safety" in advice
    assert "style" not in advice


def test_a_long_tail_is_told_from_too_few_engines() -> None:
    waits = row(train_s=6.0, wait_s=4.0, engines__busy=0.6, engines__idle=0.4)
    assert "slowest group" in gap_of(waits | {"group/tail_s": 5.0}).losses[0].advice
    assert "more engines" in gap_of(waits | {"group/tail_s": 0.5}).losses[0].advice


def test_losses_of_the_slower_side_come_largest_first() -> None:
    loading = row(
        train_s=1.0, wait_s=9.0, engines__busy=0.5, engines__idle=0.2, engines__loading=0.3
    )
    names = [loss.name for loss in gap_of(loading).losses]
    assert names == ["engines load weights", "engines have no group to write"]


def test_the_first_fill_is_left_out_and_one_slow_step_does_not_count() -> None:
    fill, slow = row(step_s=100.0), row(step_s=60.0)
    assert gap_of(fill, fill, row(), slow, row()).step_s == 10.0
    assert gap_of(fill).step_s == 100.0  # nothing else is there


def test_only_the_newest_rows_count_if_so_asked() -> None:
    gap = step_gap([row(step_s=20.0)] * 8 + [row()] * 2, newest=2)
    assert gap is not None
    assert (gap.steps, gap.step_s) == (2, 10.0)


def test_rows_of_runs_without_the_account_give_no_gap() -> None:
    assert step_gap([{"time/step_s": 3.0, "time/train_s": 2.0}]) is None
    assert step_gap([]) is None


def test_rows_that_cannot_be_measured_do_not_count() -> None:
    assert step_gap([row(step_s=0.0), row(step_s=float("nan"))]) is None
    damaged = {**row(), "group/tail_s": "x", "group/score_p99_s": None}
    assert gap_of(damaged).tail_s == 0.0  # type: ignore[arg-type]
