"""Randomised fault schedules in virtual time: ``python -m tests.simulate_faults``, or
``make simulate-faults``.

Each seed draws a small run of its own shape (staleness bound 0 to 4, one to six engines, with and
without a reference, with verifiers swapped, with one engine that lags, with a curriculum or
without) and a mix of faults, and plays it to its end with the real coordinator and ledger. The
account that must come out is kept by ``cluster.witness``, which shares no code with them. Seeds are
``--seed`` and those after it. The exit status is 1 if a schedule broke the accounting promise or
did not end; the line that says so has the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.asking import PromptSource
from cluster.simulated_roles import Faults
from cluster.simulator import SimulationReport, simulate
from curricula.sampler import Sampler
from safeladder.config import Config, CurriculumConfig
from safeladder.records import Message, Prompt
from tests.cluster.coordinator_play import Prompts, make_config

SCHEDULES = 5000
COMMAND = "python -m tests.simulate_faults --schedules 1 --seed"


@dataclass
class Tally:
    """What all schedules came to."""

    failed: list[SimulationReport] = field(default_factory=list)
    driver_deaths: int = 0
    events: int = 0
    late_results: int = 0
    continued: int = 0
    begun_anew: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)

    def add(self, report: SimulationReport) -> None:
        """Count one schedule."""
        if report.violations or not report.finished:
            self.failed.append(report)
        self.driver_deaths += report.num_driver_deaths
        self.events += report.num_events
        self.late_results += report.late_results
        self.continued += report.continued
        self.begun_anew += report.begun_anew
        self.dropped.update(report.dropped)
        self.staleness.update(report.trained_by_staleness)


def run_schedule(seed: int) -> SimulationReport:
    """The run and the faults that a seed stands for."""
    rng = random.Random(seed)
    config, faults, lag = drawn_config(rng), Faults.drawn(rng), rng.choice([0, 0, 1, 2])
    can_wait_for_it = config.schedule.max_staleness >= lag or config.rollout.actors > 1
    source = drawn_source(config, seed)
    return simulate(config, source, faults, seed, lag=lag if can_wait_for_it else 0)


def drawn_source(config: Config, seed: int) -> PromptSource:
    """A plain order for half of the seeds; else a sampler, whose draws follow the outcomes."""
    rng = random.Random(f"prompts of {seed}")
    curriculum = rng.choice([None, None, "mixed", "adaptive", "by column", "by difficulty"])
    if curriculum is None:
        return Prompts(size=20)
    staged = {"schedule": "staged", "rehearsal": rng.choice([0.0, 0.1, 0.5])}
    keys: dict[str, Any] = {
        "mixed": {"schedule": "mixed"},
        "adaptive": {"schedule": "adaptive", "decay": 0.8},
        "by column": staged | {"bucket_by": "size", "boundaries": [3.0], "advance_at": 0.3},
        "by difficulty": staged
        | {"bucket_by": "difficulty", "boundaries": [0.4, 0.7], "stage_steps": 2},
    }
    rows = [
        Prompt(
            id=f"row {n}", messages=(Message("user", "hi"),), route="safety", meta={"size": n % 7}
        )
        for n in range(20)
    ]
    settings = CurriculumConfig.model_validate(keys[curriculum])
    return Sampler(rows, settings, seed=seed, weights=[rng.choice([1, 2]) for _ in rows])


def drawn_config(rng: random.Random) -> Config:
    """A small run of random shape, with a random policy for each of two principles."""

    def judge() -> dict[str, Any]:
        policy = rng.choice(["retry", "drop_sample", "drop_group", "pause"])
        return {"verifier": "a:B", "on_invalid": policy, "actors": rng.randint(1, 2)}

    return make_config(
        run={"steps": rng.randint(1, 6)},
        principles={"safety": judge(), "format": judge()},
        routes={"safety": {"safety": 1.0, "format": 0.5}},
        rollout={
            "actors": rng.randint(1, 6),
            "group_size": rng.randint(2, 4),
            "max_concurrent_groups": rng.randint(1, 4),
            "straggler_factor": rng.choice([None, 1.0, 3.0]),
        },
        reference={"kl_coefficient": rng.choice([0.0, 0.1])},
        checkpoint={"every_steps": rng.randint(1, 3)},
        schedule={"groups_per_step": rng.randint(1, 5), "max_staleness": rng.randint(0, 4)},
    )


def main(arguments: Sequence[str]) -> int:
    """Play the schedules and print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate_faults")
    parser.add_argument("--schedules", type=int, default=SCHEDULES)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    asked = parser.parse_args(arguments)
    tally, began = Tally(), time.monotonic()
    for seed in range(asked.seed, asked.seed + asked.schedules):
        tally.add(run_schedule(seed))
    last = asked.seed + asked.schedules - 1
    sys.stdout.write(
        f"seeds {asked.seed} to {last}: {tally.events} events, {tally.driver_deaths} deaths of the "
        f"driver, {tally.late_results} late answers, {tally.continued} interrupted groups went on, "
        f"{tally.begun_anew} were too old, {tally.staleness.total()} groups trained, "
        f"dropped {dict(tally.dropped)}\n"
    )
    for report in tally.failed:
        what = "; ".join(report.violations) or report.failure
        sys.stdout.write(f"seed {report.seed}: {what}\n  again: {COMMAND} {report.seed}\n")
    figures = {
        "name": "simulate_faults",
        "figure": len(tally.failed),
        "unit": "schedules with a violation",
        "bar": 0,
        "holds": not tally.failed,
        "schedules": asked.schedules,
        "seeds": [asked.seed, last],
        "groups_trained_by_staleness": {str(k): n for k, n in sorted(tally.staleness.items())},
        "wall_s": round(time.monotonic() - began, 1),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return int(bool(tally.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
