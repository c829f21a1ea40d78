"""How near real runs come to their bound: ``python -m benchmarks.real_async``.

vLLM and DeepSpeed on two cores, roles pinned to one each, the steady state. Three workloads, each
trained in several of the ways of ``async_vs_sync``:

=========  ========================================================================================
smollm2    SmolLM2-135M, every group trained: ``max(t_generate, t_train) / t_async``; t_generate
           and t_train are each measured alone, in the synchronous run of the same invocation
small      a random Llama of 18 million parameters: the same, where what stands around the
           arithmetic counts most
tailed     SmolLM2-135M with answers up to 192 tokens, most of which end long before: a synchronous
           step that gives both cores to whoever is at work over an asynchronous one
=========  ========================================================================================

The last line is one JSON object; the exit code is 0 only if every bar holds. ``--only NAME`` runs
one workload, ``--short`` the small one with few steps, which says little.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.async_vs_sync import CONFIG, WARM_UP_STEPS, WAYS, config_of, run
from benchmarks.versus_trl import small_model
from cluster.placement import prepare_ray
from demo.convert_smollm2 import convert


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is trained, in which ways, and what must hold."""

    ways: tuple[str, ...]
    bar: float
    overrides: tuple[str, ...] = ()


ALONE = "synchronous_pinned"
RIVAL = "synchronous_both_cores"
WORKLOADS = {
    "smollm2": Workload(ways=("asynchronous", ALONE), bar=0.92, overrides=("run.steps=11",)),
    "small": Workload(
        ways=("asynchronous", ALONE),
        bar=0.80,
        overrides=("run.steps=25", "learner.train_last_layers=null"),
    ),
    "tailed": Workload(
        ways=("asynchronous", RIVAL),
        bar=1.0,
        overrides=(
            "run.steps=11",
            "schedule.max_staleness=2",
            "rollout.max_new_tokens=192",
            "rollout.group_size=4",
            "learner.micro_batch_tokens=2048",
        ),
    ),
}


def measure(name: str, root: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train a workload in its ways: the figure, and what it is made of."""
    workload = WORKLOADS[name]
    times = {}
    for way in workload.ways:
        # What a way says of staleness comes last: bound 0 is what makes it synchronous.
        chosen = [*workload.overrides, *overrides]
        if way != "asynchronous":
            chosen += WAYS[way]
        times[way] = run(config_of(way, root / name, chosen))
    step_s = times["asynchronous"]["step_s"]
    found: dict[str, Any] = {"t_async_s": round(step_s, 3)}
    if ALONE in times:
        alone = times[ALONE]
        figure = max(alone["generate_s"], alone["train_s"]) / step_s
        found |= {
            "t_generate_s": round(alone["generate_s"], 3),
            "t_train_s": round(alone["train_s"], 3),
            "t_synchronous_pinned_s": round(alone["step_s"], 3),
        }
    else:
        figure = times[RIVAL]["step_s"] / step_s
        found |= {"t_synchronous_both_cores_s": round(times[RIVAL]["step_s"], 3)}
    return found | {
        "figure": round(figure, 3),
        "bar": workload.bar,
        "holds": figure >= workload.bar,
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if all bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=tuple(WORKLOADS), help="one workload")
    parser.add_argument("--short", action="store_true", help="the small model, a few steps")
    parser.add_argument("overrides", nargs="*", help="key=value overrides of the config")
    options = parser.parse_args(arguments)
    names = ["small"] if options.short else [options.only] if options.only else list(WORKLOADS)
    overrides = [*(["run.steps=6"] if options.short else []), *options.overrides]
    root = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    found = {}
    try:
        config = config_of("asynchronous", root, overrides)
        convert(config.model.path)
        prepare_ray(config)
        small = small_model(root / "model", config.model.path)
        for name in names:
            path = [f"model.path={small}"] if name == "small" else []
            found[name] = measure(name, root, [*path, *overrides])
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    first = found[names[0]]
    result = {
        "name": "real_async",
        "figure": first["figure"],
        "unit": f"of the bound of {names[0]}",
        "bar": first["bar"],
        "holds": all(one["holds"] for one in found.values()),
        "warm_up_steps": WARM_UP_STEPS,
        "config": str(CONFIG),
        "workloads": found,
    }
    print(json.dumps(result))
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
