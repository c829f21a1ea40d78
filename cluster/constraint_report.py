"""What ``evaluate-constraints`` prints: rates, types, levels, and the table before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.table import Column, Table


def print_constraint_report(report: Mapping[str, Any], stream: TextIO) -> None:
    """The parts that the report has."""
    console = Console(file=stream, highlight=False, markup=False)
    console.print(f"reading: {report['reading']}")
    if "ifeval" in report:
        _ifeval(console, report["ifeval"])
    if "followbench" in report:
        _followbench(console, report["followbench"])
    if "before_and_after" in report:
        _changes(console, report["before_and_after"])


def _ifeval(console: Console, part: Mapping[str, Any]) -> None:
    table = Table("rate", "mean", "instructions", title="Instructions with constraints")
    for name, rate in part["rates"].items():
        table.add_row(name.replace("_", " "), _points(rate["mean"]), str(rate["instructions"]))
    console.print(table)
    types = Table(Column("type", overflow="fold"), "judged", "strict", "loose", "no outcome")
    for name, counts in part["types"].items():
        judged = counts["judged"]
        shares = [_points(counts[way] / judged) if judged else "" for way in ("strict", "loose")]
        types.add_row(name, str(judged), *shares, str(counts["masked"] or ""))
    console.print(types)
    console.print(
        f"reward floor, what texts that say nothing earn: {_points(part['reward_floor'])}"
    )
    missing = part["instructions"] - part["answered"]
    if missing:
        console.print(f"{missing} of {part['instructions']} instructions have no answer: unscored")


def _followbench(console: Console, part: Mapping[str, Any]) -> None:
    table = Table("level", "scored", "HSR", "95 % interval", "SSR", title="FollowBench")
    for row in part["levels"]:
        scored = f"{row['scored']} of {row['answers']}"
        if "hsr" not in row:
            table.add_row(str(row["level"]), scored, "", "", "")
            continue
        low, high = row["hsr_ci95"]
        interval = f"{_points(low)} to {_points(high)}"
        table.add_row(str(row["level"]), scored, _points(row["hsr"]), interval, _points(row["ssr"]))
    console.print(table)
    csl = "unknown" if part["csl"] is None else f"{part['csl']:.2f}"
    console.print(
        f"CSL {csl} over {part['csl_groups']} groups, {part['csl_left_out']} left out; "
        f"{part['by_rule']} levels have a rule, {part['without_reply']} wait for a judge"
    )


def _changes(console: Console, table: Mapping[str, Any]) -> None:
    shown = Table("rate", "before", "after", "change", "95 % interval", "pairs")
    for name, change in table.items():
        low, high = change["ci95"]
        shown.add_row(
            name.replace("_", " "),
            _points(change["before"]),
            _points(change["after"]),
            f"{100 * (change['after'] - change['before']):+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            str(change["prompts"]),
        )
    console.print(shown)


def _points(share: float) -> str:
    return f"{100 * share:.1f} %"
