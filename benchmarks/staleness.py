"""Does training on samples of older versions cost reward? ``python -m benchmarks.staleness``.

One-digit sums (``benchmarks.digit_sums``), synchronous (``max_staleness: 0``) and asynchronous with
bounds 1, 2 and 4, three seeds each: the same prompts, samples per step and number of steps. Figure:
the largest difference of an asynchronous way to the synchronous one in the mean reward of the last
five steps, over seeds; its 95 % interval is Student's over the differences of each seed.

Bars: differences of at most 0.05, each with its interval inside ±0.10. ``--write FOLDER`` writes
the table and the curves. Runs stay under ``runs/digit-sums-*`` and are not made twice.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.digit_sums import Curve, asked_of, curves, final_reward, mean_curve
from cluster.line_plot import line_plot, standalone

MAX_DIFFERENCE, MAX_INTERVAL = 0.05, 0.10
SYNCHRONOUS = "synchronous"
WAYS = {
    SYNCHRONOUS: ["schedule.max_staleness=0"],
    **{f"staleness-{bound}": [f"schedule.max_staleness={bound}"] for bound in (1, 2, 4)},
}
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantile of Student's t with 1, 2, ... degrees of freedom."""


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two to ten differences."""
    half = T_975[len(differences) - 2] * stdev(differences) / math.sqrt(len(differences))
    return mean(differences) - half, mean(differences) + half


def compared(found: Mapping[str, Sequence[Curve]]) -> dict[str, dict[str, Any]]:
    """Way → final reward of each seed, staleness that came about, and what it is worse by."""
    plain = [final_reward(steps) for steps in found[SYNCHRONOUS]]
    table: dict[str, dict[str, Any]] = {}
    for way, seeds in found.items():
        rewards = [final_reward(steps) for steps in seeds]
        differences = [a - b for a, b in zip(rewards, plain, strict=True)]
        table[way] = {
            "final_reward": rewards,
            "staleness": mean(row["train/staleness_mean"] for steps in seeds for row in steps),
            "kl_behavior": mean(row["train/kl_behavior"] for steps in seeds for row in steps),
            "difference": mean(differences),
            "ci95": interval(differences),
        }
    return table


def missed(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The bars that do not hold, each with its number."""
    found = []
    for way, row in table.items():
        low, high = row["ci95"]
        if abs(row["difference"]) > MAX_DIFFERENCE:
            found.append(f"{way} differs by {row['difference']:+.3f}; the bar is {MAX_DIFFERENCE}")
        if max(-low, high) > MAX_INTERVAL:
            found.append(f"{way}: interval {low:+.3f} to {high:+.3f}; the bar is {MAX_INTERVAL}")
    return found


def markdown(table: Mapping[str, Mapping[str, Any]], misses: Sequence[str]) -> str:
    """The table."""
    lines = [
        "# Asynchronous against synchronous",
        "",
        "`python -m benchmarks.staleness`: one-digit sums, mean reward of the last five steps.",
        "",
        "| way | staleness seen | final reward of each seed | to synchronous | 95 % interval |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, row in table.items():
        rewards = ", ".join(f"{reward:.3f}" for reward in row["final_reward"])
        low, high = row["ci95"]
        against = (
            "|  | "
            if way == SYNCHRONOUS
            else f"| {row['difference']:+.3f} | {low:+.3f} to {high:+.3f} "
        )
        lines.append(f"| {way} | {row['staleness']:.2f} | {rewards} {against}|")
    lines += ["", *(f"Missed: {miss}." for miss in misses)] if misses else ["", "All bars hold."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bars hold."""
    asked = asked_of(arguments, __doc__, seeds=(7, 8, 9))
    if not 2 <= len(asked.seeds) <= len(T_975) + 1:
        print("--seeds: two to ten, an interval needs them", file=sys.stderr)
        return 2
    found = curves(WAYS, asked.seeds, asked.overrides)
    table = compared(found)
    misses = missed(table)
    text = markdown(table, misses)
    print(text, flush=True)
    if asked.write is not None:
        asked.write.mkdir(parents=True, exist_ok=True)
        lines = {way: mean_curve(seeds, "reward/mean") for way, seeds in found.items()}
        plot = line_plot("Mean reward by bound of staleness", lines, "step")
        (asked.write / "staleness.svg").write_text(standalone(plot), encoding="utf-8")
        (asked.write / "staleness.md").write_text(
            f"{text}\n![Curves](staleness.svg)\n", encoding="utf-8"
        )
    result: dict[str, Any] = {
        "name": "staleness",
        "figure": round(max(abs(row["difference"]) for row in table.values()), 4),
        "unit": "largest difference in final reward to synchronous training",
        "bar": MAX_DIFFERENCE,
        "holds": not misses,
        "missed": misses,
        "seeds": asked.seeds,
        "ways": table,
    }
    print(json.dumps(result))
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
