"""Objectives side by side on one task, as in the CPGD report: ``python -m benchmarks.objectives``.

One-digit sums (``benchmarks.digit_sums``), three passes over each batch so that the policy leaves
the one that sampled, and a rate at which that tells: CPGD, CPGD without its drift, without its clip
(the plain policy gradient, drift kept) and without both, GRPO, RLOO and REINFORCE++. For each way:

* reward at the end (last five steps), and the best mean of five steps;
* *fall*: how far the end is below that best, the report's sign of a collapse;
* the largest KL to the behavior policy and the largest ratio in a step.

The bar is one of stability: CPGD's reward at the end is within 0.05 of its best. ``--write FOLDER``
writes the table and the curves. Runs stay under ``runs/digit-sums-*`` and are not made twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.digit_sums import LAST_STEPS, Curve, asked_of, curves, final_reward, mean_curve
from cluster.line_plot import line_plot, standalone

MAX_FALL = 0.05
COMMON = ["learner.epochs=3", "learner.lr=5.0e-5"]
_CPGD = "learner.objective.profile=cpgd"
_NO_CLIP, _NO_DRIFT = (
    "learner.objective.policy_loss=pg",
    "learner.objective.drift_coefficient=0.0",
)
WAYS = {
    "cpgd": [_CPGD],
    "cpgd-no-drift": [_CPGD, _NO_DRIFT],
    "cpgd-no-clip": [_CPGD, _NO_CLIP],
    "cpgd-neither": [_CPGD, _NO_CLIP, _NO_DRIFT],
    "grpo": ["learner.objective.profile=grpo"],
    "rloo": ["learner.objective.profile=rloo"],
    "reinforce-pp": ["learner.objective.profile=reinforce_pp"],
}
PLOTS = {
    "reward/mean": "Mean reward",
    "train/kl_behavior": "KL to the behavior policy",
    "train/ratio_max": "Largest ratio in a step",
}


def best_reward(steps: Curve) -> float:
    """Highest mean reward of consecutive steps, as many as the final reward is a mean of."""
    rewards = [row["reward/mean"] for row in steps]
    starts = range(max(1, len(rewards) - LAST_STEPS + 1))
    return max(mean(rewards[start : start + LAST_STEPS]) for start in starts)


def compared(found: Mapping[str, Sequence[Curve]]) -> dict[str, dict[str, float]]:
    """Way → means over seeds, and the largest of the maxima."""
    return {
        way: {
            "first_reward": mean(steps[0]["reward/mean"] for steps in seeds),
            "final_reward": mean(final_reward(steps) for steps in seeds),
            "best_reward": mean(best_reward(steps) for steps in seeds),
            "fall": mean(best_reward(steps) - final_reward(steps) for steps in seeds),
            "kl_behavior_max": max(row["train/kl_behavior"] for steps in seeds for row in steps),
            "ratio_max": max(row["train/ratio_max"] for steps in seeds for row in steps),
        }
        for way, seeds in found.items()
    }


def markdown(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table."""
    lines = [
        "# Objectives side by side",
        "",
        "`python -m benchmarks.objectives`: one-digit sums, three passes over each batch.",
        "",
        "| objective | first step | end | best | fall | largest KL to behavior | largest ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way, row in table.items():
        lines.append(
            f"| {way} | {row['first_reward']:.3f} | {row['final_reward']:.3f} "
            f"| {row['best_reward']:.3f} | {row['fall']:.3f} | {row['kl_behavior_max']:.3g} "
            f"| {row['ratio_max']:.3g} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bar holds."""
    asked = asked_of(arguments, __doc__, seeds=(7,))
    found = curves(WAYS, asked.seeds, [*COMMON, *asked.overrides])
    table = compared(found)
    text = markdown(table)
    print(text, flush=True)
    if asked.write is not None:
        asked.write.mkdir(parents=True, exist_ok=True)
        for metric, title in PLOTS.items():
            lines = {way: mean_curve(seeds, metric) for way, seeds in found.items()}
            name = f"objectives-{metric.partition('/')[2].replace('_', '-')}.svg"
            plot = standalone(line_plot(title, lines, "step"))
            (asked.write / name).write_text(plot, encoding="utf-8")
            text += f"\n![{title}]({name})\n"
        (asked.write / "objectives.md").write_text(text, encoding="utf-8")
    fall = table["cpgd"]["fall"]
    result: dict[str, Any] = {
        "name": "objectives",
        "figure": round(fall, 4),
        "unit": "reward of CPGD's best five steps less that of its last",
        "bar": MAX_FALL,
        "holds": fall <= MAX_FALL,
        "seeds": asked.seeds,
        "ways": table,
    }
    print(json.dumps(result))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
