"""One small task, trained in different ways: the sum of two digits, by SmolLM2-135M.

Shared by ``benchmarks.staleness`` and ``benchmarks.objectives``. Every way trains as many
steps on the same prompts in the same order, and differs only in the overrides of its name. A run
that is there is read, or gone on with, so a study can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from cluster.history import read_history
from cluster.run_directory import RunDirectory
from demo.convert_smollm2 import convert
from safeladder.config_loading import load_config

CONFIG = Path("configs/benchmarks/digit_sums.yaml")
PROMPTS = Path("build/digit_sums/train.jsonl")
"""Where the config looks for them."""
LAST_STEPS = 5
"""Steps whose mean reward is the final reward."""

Curve = list[dict[str, float]]
"""What each step measured, in order."""


def write_prompts(path: Path) -> None:
    """All hundred sums, in an order that is always the same."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    Random(0).shuffle(pairs)
    rows = [
        {"id": f"{a}+{b}", "prompt": f"What is {a} + {b}?", "reference": str(a + b), "route": "sum"}
        for a, b in pairs
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def curve(name: str, seed: int, overrides: Sequence[str]) -> Curve:
    """Train under ``runs/digit-sums-NAME-SEED``, unless that run is over; its steps."""
    run = RunDirectory(Path("runs") / f"digit-sums-{name}-{seed}")
    status = run.status() if run.holds_a_run else None
    if status is None or status.state != "finished":
        words = (
            ["resume", str(run.path)]
            if status is not None
            else ["train", str(CONFIG), f"run.name={run.path.name}", f"run.seed={seed}", *overrides]
        )
        subprocess.run([sys.executable, "-m", "cluster", *words], check=True)
    return read_history(run.path)["train"]


def curves(
    ways: Mapping[str, Sequence[str]], seeds: Sequence[int], overrides: Sequence[str]
) -> dict[str, list[Curve]]:
    """Way → one curve for each seed. Seeds are gone through first, so that ways stay comparable
    when a study ends early."""
    convert(load_config([CONFIG]).model.path)
    write_prompts(PROMPTS)
    found: dict[str, list[Curve]] = {way: [] for way in ways}
    for seed in seeds:
        for way, words in ways.items():
            found[way].append(curve(way, seed, [*words, *overrides]))
    return found


def final_reward(steps: Curve) -> float:
    """Mean reward of the last steps."""
    last = steps[-LAST_STEPS:]
    return sum(row["reward/mean"] for row in last) / len(last)


def mean_curve(found: Sequence[Curve], metric: str) -> list[tuple[float, float | None]]:
    """(step, mean over the seeds) for a plot; None where no seed has the metric."""
    points: list[tuple[float, float | None]] = []
    for rows in zip(*found, strict=False):
        values = [row[metric] for row in rows if metric in row]
        points.append((rows[0]["train/step"], sum(values) / len(values) if values else None))
    return points


def asked_of(arguments: Sequence[str], doc: str | None, seeds: Sequence[int]) -> argparse.Namespace:
    """The options that both studies have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--write", type=Path, help="folder that gets the table and the plots")
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the config")
    return parser.parse_args(arguments)
