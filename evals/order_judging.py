"""Verdicts on the answer to a trial: one for each constraint, by rule.

Strict, on the visible answer. A rule that raises gives no verdict, which is never a number.
"""

from __future__ import annotations

from evals.order_trials import Trial
from rewards.constraints.port import Reading
from rewards.constraints.rows import stated
from safeladder.records import THINK_END


def judge_trial(trial: Trial, answer: str, reading: Reading = "reference") -> list[bool | str]:
    """For each constraint in presented order whether it is met, or why that cannot be told. A blank
    answer meets none."""
    visible = answer.rpartition(THINK_END)[2].strip()
    entries = [{"id": one["id"], "kwargs": one["kwargs"]} for one in trial.constraints]
    found: list[bool | str] = []
    for constraint in stated(entries):
        try:
            found.append(bool(visible) and constraint.is_met(visible, reading))
        except Exception as error:  # noqa: BLE001 - a rule that breaks says nothing
            found.append(f"{constraint.id}: {type(error).__name__}: {error}")
    return found
