"""Does asynchrony pay on this machine? One session, one model, the same work in three ways.

1. ``asynchronous``: roles pinned to a core each, ``max_staleness: 1``.
2. ``synchronous, pinned``: the same with ``max_staleness: 0``; here generation and training never
   overlap, so the time of each alone is read off this run:
   the learner's own, and the time in which the engine had a group to write.
3. ``synchronous, both cores``: nothing pinned, two threads in every actor, so that the active role
   has the whole machine.

Figure: ``max(t_generate, t_train) / t_async`` in steady state, medians over the steps after the
first fill. Every group is trained and every completion has the same length limit, so a step is the
same work everywhere. The synchronous times stand beside it, and ``asynchrony_wins`` says plainly
which of the three was quickest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cluster.history import read_history
from cluster.placement import prepare_ray
from demo.convert_smollm2 import convert
from safeladder.config import Config
from safeladder.config_loading import load_config

BAR = 0.85
WARM_UP_STEPS = 3
"""Steps left out: the first fill and the first publication."""
CONFIG = Path("configs/benchmarks/async_vs_sync.yaml")

WAYS = {
    "asynchronous": ["schedule.max_staleness=1"],
    "synchronous_pinned": ["schedule.max_staleness=0"],
    "synchronous_both_cores": [
        "schedule.max_staleness=0",
        "placement.rollout_cores=[]",
        "placement.learner_cores=[]",
        "placement.threads_per_actor=2",
    ],
}


def run(config: Config) -> dict[str, float]:
    """Train; medians of the steady state in seconds."""
    from cluster.driver import train

    train(config)
    rows = read_history(config.run.directory)["train"][WARM_UP_STEPS:]
    return {
        "step_s": median(row["time/step_s"] for row in rows),
        "train_s": median(row["time/train_s"] for row in rows),
        "generate_s": median(row["engines/busy"] * row["time/step_s"] for row in rows),
    }


def config_of(
    way: str, root: Path, overrides: Sequence[str], files: Sequence[Path] = (CONFIG,)
) -> Config:
    """The config of one of ``WAYS``; its run goes below ``root``."""
    return load_config(files, [*WAYS[way], f"run.root={root}", f"run.name={way}", *overrides])


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the config")
    overrides = parser.parse_args(arguments).overrides
    root = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    try:
        config = config_of("asynchronous", root, overrides)
        convert(config.model.path)
        prepare_ray(config)
        times = {way: run(config_of(way, root, overrides)) for way in WAYS}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    alone = times["synchronous_pinned"]
    bound_s = max(alone["generate_s"], alone["train_s"])
    t_async = times["asynchronous"]["step_s"]
    t_sync = {way: times[way]["step_s"] for way in WAYS if way != "asynchronous"}
    figure = bound_s / t_async
    result = {
        "name": "async_vs_sync",
        "figure": round(figure, 3),
        "unit": "max(t_generate, t_train) / t_async",
        "bar": BAR,
        "holds": figure >= BAR,
        "t_generate_s": round(alone["generate_s"], 2),
        "t_train_in_async_s": round(times["asynchronous"]["train_s"], 2),
        "t_generate_in_async_s": round(times["asynchronous"]["generate_s"], 2),
        "t_train_s": round(alone["train_s"], 2),
        "t_async_s": round(t_async, 2),
        **{f"t_{way}_s": round(seconds, 2) for way, seconds in t_sync.items()},
        "asynchrony_wins": t_async < min(t_sync.values()),
        "steps_measured": config.run.steps - WARM_UP_STEPS,
    }
    print(json.dumps(result))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
