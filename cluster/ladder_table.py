"""What each rung made of the model: every evaluation absolute, and relative to the base.

Reads what the runs of a ladder wrote; asks no model. The base is what the first rung with an
evaluation found when it began. No column stands for all: how a rung stands, all told, is
``evals.standing``'s ruling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from cluster.ladder_directory import LadderDirectory
from cluster.results import Results
from curricula.prompts import load_prompts
from evals.held_out import Change, Outcomes, compare
from evals.standing import LOWER_IS_BETTER, Standing, standing

MIN_BASE = 0.10
"""A relative change of less than this says more of the base than of the rung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One rung beside the base."""

    rung: str
    changes: Mapping[str, Change]
    """Metric → base, rung and the interval of the difference."""
    standing: Standing

    def relative(self, metric: str) -> float | None:
        """Change as a share of the base; None where the base is too small for one."""
        change = self.changes[metric]
        if change["before"] < MIN_BASE:
            return None
        return change["after"] / change["before"] - 1

    @property
    def mean_relative(self) -> float | None:
        """Over rates that are to rise and whose base is large enough; never to be told alone."""
        rates = [m for m in self.changes if m.endswith("_rate") and m not in LOWER_IS_BETTER]
        found = [self.relative(metric) for metric in rates]
        there = [share for share in found if share is not None]
        return sum(there) / len(there) if there else None

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        metrics = {
            metric: {**change, "relative": self.relative(metric)}
            for metric, change in self.changes.items()
        }
        return {
            "rung": self.rung,
            "standing": self.standing,
            "mean_relative": self.mean_relative,
            "metrics": metrics,
        }


def columns_of(directory: LadderDirectory) -> list[Column]:
    """One for each rung that has ended and was evaluated."""
    base: Outcomes = {}
    found: list[Column] = []
    for record in directory.read_lineage().rungs:
        run = directory.run(record.run)
        if not run.holds_a_run or not run.evaluation.is_dir():
            continue
        config = run.config()
        held_out = load_prompts(config.data.held_out, config.routes, config.model.system_prompt)
        results = Results(config, run, held_out)
        base = base or results.outcomes("before")
        after = results.outcomes("after")
        if base and after:
            changes = compare(base, after, seed=config.run.seed)
            found.append(Column(rung=record.run, changes=changes, standing=standing(changes)))
    return found


def evaluations(columns: list[Column]) -> Table:
    """Metrics down, base and rungs across."""
    table = Table("evaluation", "base", *(column.rung for column in columns), title="Evaluations")
    metrics = list(dict.fromkeys(metric for column in columns for metric in column.changes))
    for metric in metrics:
        there = [column.changes[metric] for column in columns if metric in column.changes]
        cells = [_cell(column, metric) for column in columns]
        table.add_row(metric, f"{100 * there[0]['before']:.1f}", *cells)
    table.add_row("", "", *("" for _ in columns), end_section=True)
    table.add_row("all told", "", *(_all_told(column.standing) for column in columns))
    means = [column.mean_relative for column in columns]
    table.add_row("mean relative", "", *("" if m is None else f"{100 * m:+.1f} %" for m in means))
    return table


def _cell(column: Column, metric: str) -> str:
    if metric not in column.changes:
        return ""
    change, relative = column.changes[metric], column.relative(metric)
    low, high = change["ci95"]
    difference = 100 * (change["after"] - change["before"])
    share = "" if relative is None else f", {100 * relative:+.0f} %"
    return (
        f"{100 * change['after']:.1f} ({difference:+.1f}{share}; {100 * low:+.1f} to "
        f"{100 * high:+.1f})"
    )


def _all_told(found: Standing) -> str:
    fallen = f": {', '.join(found['fallen'])} fell" if found["fallen"] else ""
    return f"{found['verdict']}{fallen}"
