"""How much of the slowest role's time a step is: ``python -m benchmarks.overlap [--short]``.

A run as it is, but that roles take a known time and compute nothing (``timed_roles``): Ray with 8
rollout, 2 verifier, 1 reference and 1 learner actor, the loop and its coordinator, the ledger on
disk, the monitor, a new version of weights each step, and 64 groups of 256 KiB a step through the
object store. The learner is the slowest by a little; what a step takes longer than it is the
system's own, and so is the processor time.

A step's batch is not written: that is work of the learner, for which the sleep stands.

The last line is one JSON object; the exit code is 0 only if the bar holds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.placement import prepare_ray
from safeladder.config import Config

BAR = 0.95
"""Slowest role's time over step time; the learner is the slowest, so it idles at most 5 %."""
MAX_STEP_S = 0.2
STEP_S = 0.19
"""Of the learner."""
GROUP_S, CALL_S, PRICED_S = 0.022, 0.005, 0.0025
"""Of an engine for a group, a verifier for a call, the reference for a group."""
ENGINES, VERIFIERS = 8, 2
GROUPS = 64
GROUP_SIZE = 8
TOKENS = 2731
"""Of a completion: 8 of these, with log-probs and versions of 4 bytes each, are 256 KiB."""
NUM_PROMPTS = 2000
WARM_UP, STEPS = 20, 80
SHORT = 6, 12


def role_times_s() -> dict[str, float]:
    """Time of each role for one step."""
    return {
        "rollout": GROUPS * GROUP_S / ENGINES,
        "verifier": GROUPS * CALL_S / VERIFIERS,
        "reference": GROUPS * PRICED_S,
        "learner": STEP_S,
    }


def build_config(root: Path, steps: int) -> Config:
    """The run that is measured."""
    verifier = "benchmarks.timed_roles:TimedVerifier"
    judge = {"verifier": verifier, "actors": VERIFIERS, "options": {"call_s": CALL_S}}
    return Config.model_validate(
        {
            "run": {"name": "overlap", "root": root, "steps": steps},
            "model": {"path": root},
            "data": {"train": []},
            "principles": {"safety": judge},
            "routes": {"safety": {"safety": 1.0}},
            "rollout": {
                "actors": ENGINES,
                "group_size": GROUP_SIZE,
                "max_new_tokens": TOKENS,
                "max_concurrent_groups": GROUPS // ENGINES,
            },
            "reference": {"kl_coefficient": 0.05},
            "schedule": {"groups_per_step": GROUPS, "max_staleness": 4},
            "checkpoint": {"every_steps": steps},
            "monitor": {"wandb": "off", "samples_every": steps},
        }
    )


class Processes:
    """Processor time of this process and all that it started, sampled while a run goes on."""

    EVERY_S = 0.25

    def __init__(self) -> None:
        self._samples: list[tuple[float, dict[str, float]]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def cores(self, began: float, ended: float) -> dict[str, float]:
        """Cores that each kind of process kept busy between two moments."""
        first = next(sample for sample in self._samples if sample[0] >= began)
        last = [sample for sample in self._samples if sample[0] <= ended][-1]
        spent = {kind: s - first[1].get(kind, 0.0) for kind, s in last[1].items()}
        ordered = sorted(spent.items(), key=lambda item: -item[1])
        return {kind: seconds / (last[0] - first[0]) for kind, seconds in ordered}

    def _sample(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._over.wait(self.EVERY_S):
            spent: defaultdict[str, float] = defaultdict(float)
            for process in (me, *me.children(recursive=True)):
                try:
                    times = process.cpu_times()
                    kind = "driver" if process.pid == me.pid else _kind(process.name())
                except psutil.Error:
                    continue
                spent[kind] += times.user + times.system
            self._samples.append((time.monotonic(), spent))


def _kind(name: str) -> str:
    """``ray::rollout-3`` is a rollout."""
    return name.removeprefix("ray::").partition("-")[0]


def measure(root: Path, warm_up: int, steps: int) -> dict[str, Any]:
    """Play a run and say what its steady state was like."""
    config = build_config(root, warm_up + steps)
    prepare_ray(config)
    with Processes() as processes:
        turns, num_exchanges = play(config)
    rows = _train_rows(config.run.directory / "metrics.jsonl")
    began, ended = (rows[step - 1]["train/ended_at"] for step in (warm_up, warm_up + steps))
    window = rows[warm_up:]
    step_s = (ended - began) / steps
    trained_s = sum(row["time/train_s"] for row in window)
    read_s = sum(row["train/began_at"] - row["train/ordered_at"] for row in window)
    roles = role_times_s()
    cores = processes.cores(began, ended)
    turns = sorted(turns[len(turns) // 4 :])
    return {
        "figure": round(max(roles.values()) / step_s, 4),
        "step_ms": round(1e3 * step_s, 1),
        "trainer_bubble": round(1 - trained_s / (ended - began), 4),
        "payloads_read_ms": round(1e3 * read_s / steps, 1),
        "busy_share": {role: round(seconds / step_s, 3) for role, seconds in roles.items()},
        "cores": {kind: round(share, 2) for kind, share in cores.items() if share >= 0.005},
        "cores_in_all": round(sum(cores.values()), 2),
        "cpu_ms_per_group": round(1e3 * sum(cores.values()) * step_s / GROUPS, 2),
        "driver_ms_per_group": round(1e3 * cores["driver"] * step_s / GROUPS, 2),
        "exchanges_per_group": round(num_exchanges / ((warm_up + steps) * GROUPS), 2),
        "turn_ms_p50": round(1e3 * turns[len(turns) // 2], 1),
        "turn_ms_p99": round(1e3 * turns[len(turns) * 99 // 100], 1),
        "steps_measured": steps,
    }


def play(config: Config) -> tuple[list[float], int]:
    """The stages of ``cluster.run`` around the loop, with timed roles in the crew: seconds of each
    turn, and the number of exchanges with the fleets."""
    from benchmarks.measured_loop import MeasuredLoop
    from benchmarks.timed_roles import timed_builders
    from cluster.coordinator import Coordinator
    from cluster.crew import Crew
    from cluster.fleet_keeper import FleetKeeper
    from cluster.ledger import Ledger
    from cluster.monitor_link import MonitorLink
    from cluster.panel_keeper import PanelKeeper
    from cluster.probe_keeper import ProbeKeeper
    from cluster.remote import session
    from cluster.run_directory import RunDirectory
    from cluster.services import VerifierServices
    from cluster.swaps import PanelSource, Swaps
    from cluster.telemetry import Telemetry
    from cluster.terminal import Terminal
    from curricula.prompts import PromptOrder
    from safeladder.records import Message, Prompt

    directory = RunDirectory.create(config)
    asked = (Message("user", "A question of the usual length, asked once more. " * 4),)
    rows = [Prompt(id=str(i), messages=asked, route="safety") for i in range(NUM_PROMPTS)]
    prompts = PromptOrder(rows, config.run.seed, config.data.shuffle)
    builders = timed_builders(group_s=GROUP_S, priced_s=PRICED_S, step_s=STEP_S)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(directory.ledger, config.run.name))
        fence = ledger.raise_fence()
        services = VerifierServices(config, directory.config_file, directory.services)
        stack.enter_context(session(config))
        crew = stack.enter_context(Crew(config, fence, builders))
        crew.start_reference(config.model.path)
        crew.bring_up(config.model.path, None)
        monitor = MonitorLink(config, directory.path, crew.verifier_versions)
        stack.callback(monitor.close)
        terminal = Terminal(io.StringIO(), config.run.steps)
        telemetry = Telemetry(config, directory, monitor, terminal, pid=os.getpid(), fence=fence)
        telemetry.panel_in_force(crew.panel, crew.verifier_versions)
        source = PanelSource.read(config)
        probes = ProbeKeeper(
            config, {}, crew.rollout, lambda: crew.judges, telemetry, directory.probes,
            fence=fence, step=0,
        )  # fmt: skip
        loop = MeasuredLoop(
            config,
            fence=fence,
            coordinator=Coordinator(config, prompts, fence, ledger.snapshot()),
            ledger=ledger,
            rollout=crew.rollout,
            verifiers=crew.verifiers,
            probes=probes,
            keeper=PanelKeeper(source, crew, Swaps(directory), services, telemetry),
            fleets=FleetKeeper(crew.rollout, directory, telemetry),
            reference=crew.reference,
            learners=crew.learners,
            weights=crew.weights,
            services=services,
            telemetry=telemetry,
            save=lambda step: crew.queue_save(step, directory.checkpoints),
        )
        loop.run()
        crew.settle()
        monitor.finish({})
        fleets = [crew.rollout, *crew.verifiers.values(), crew.reference]
        num_exchanges = sum(fleet.num_exchanges for fleet in fleets if fleet is not None)
        schedule = config.schedule
        problems = ledger.audit(groups_per_step=GROUPS, max_staleness=schedule.max_staleness)
    if problems:
        raise RuntimeError(f"the ledger is not sound: {problems}")
    return loop.turns, num_exchanges


def _train_rows(path: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def main(arguments: Sequence[str]) -> int:
    """Measure, print one JSON object, return 0 if the bar holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="a few steps: shows that it runs")
    steps = SHORT if parser.parse_args(arguments).short else (WARM_UP, STEPS)
    # Not in the system's temporary folder, which may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
        found = measure(Path(folder), *steps)
    holds = found["figure"] >= BAR and found["step_ms"] <= 1e3 * MAX_STEP_S
    result = {
        "name": "overlap",
        "unit": "max(role time) / step time",
        "bar": BAR,
        "holds": holds,
        **found,
    }
    print(json.dumps(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
