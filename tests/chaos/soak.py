"""Endurance: a fault every so many seconds, for as long as asked: ``python -m tests.chaos.soak
--minutes 30 --every 30``, or ``--engine vllm --every 150``.

The first part of the run has no fault: its speed is what the rest is compared with. Reported are
the effective training-time share (steps that survived × seconds of a step without faults, over the
time with faults), and how memory grew. At the end the driver is killed, and the account of the run
as far as its newest checkpoint is checked. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from tests.chaos import checker
from tests.chaos.driven import ACTOR, GROUPS_PER_STEP, Driven, driven
from tests.chaos.outcome import Report
from tests.chaos.vllm import ENGINE

VICTIMS = {
    "rollout": "ray::rollout",
    "verifier": f"ray::verifier:{ACTOR}",
    "verifier service": "serve-verifier",
    "reference": "ray::reference",
    "monitor": "ray::monitor",
    "learner": "ray::learner",
    "driver": "",
}
ENGINE_PROCESS = {"engine process": "VLLM::EngineCore"}
QUIET_SHARE = 0.2
"""Of the time, at the beginning, without faults."""
SAMPLE_EVERY_S = 2.0
MIB = 2**20


class Memory(threading.Thread):
    """Resident memory of the driver and of all processes of the run, over time."""

    def __init__(self, run: Driven) -> None:
        super().__init__(daemon=True)
        self._run = run
        self._is_over = threading.Event()
        self.trees: dict[int, list[tuple[float, float]]] = {}
        """Driver's process → (second, MiB) of the sum over all processes while it lived."""
        self.drivers: dict[int, list[tuple[float, float]]] = {}
        """The same of the driver alone."""

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_EVERY_S):
            now, total = time.monotonic(), 0.0
            driver = 0 if self._run.process is None else self._run.process.pid
            for process in self._run.processes():
                with contextlib.suppress(psutil.Error):
                    total += (size := process.memory_info().rss / MIB)
                    if process.pid == driver:
                        self.drivers.setdefault(driver, []).append((now, size))
            self.trees.setdefault(driver, []).append((now, total))

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def slope_within(lives: dict[int, list[tuple[float, float]]]) -> float | None:
    """MiB a minute within the lives of drivers, weighted by their time; the first third of each, in
    which it loads what it needs, is left out."""
    slopes, weights = [], []
    for samples in lives.values():
        late = samples[len(samples) // 3 :]
        if len(late) >= 10:
            slopes.append(slope(late))
            weights.append(late[-1][0] - late[0][0])
    return round(float(np.average(slopes, weights=weights)), 2) if slopes else None


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """MiB a minute, by least squares."""
    seconds, sizes = np.array(samples).T
    return float(np.polyfit(seconds / 60, sizes, 1)[0])


def soak(run: Driven, victims: dict[str, str], minutes: float, every_s: float, seed: int) -> Any:
    """Hurt a run until the time is over; returns the figures."""
    rng = random.Random(seed)
    run.train()
    run.await_steps(3)
    memory = Memory(run)
    memory.start()
    began, first = time.monotonic(), run.steps()
    time.sleep(minutes * 60 * QUIET_SHARE)
    quiet_s, quiet_steps = time.monotonic() - began, run.steps() - first
    hurt_at, hurt_step = time.monotonic(), run.steps()
    end, faults = began + minutes * 60, list[str]()
    next_fault = hurt_at
    while time.monotonic() < end:
        time.sleep(0.2)
        if not run.is_running:
            run.resume()
        if time.monotonic() >= next_fault and _strike(
            run, name := rng.choice(list(victims)), victims
        ):
            faults.append(name)
            next_fault = time.monotonic() + every_s
            sys.stdout.write(f"[{time.monotonic() - began:6.0f} s] step {run.steps()}: {name}\n")
            sys.stdout.flush()
    hurt_s, hurt_steps = time.monotonic() - hurt_at, run.steps() - hurt_step
    memory.stop()
    _end(run)
    found = checker.check_going_on(
        run.run, run.witness, groups_per_step=GROUPS_PER_STEP, bound=run.bound
    )
    share = (hurt_steps / hurt_s) / (quiet_steps / quiet_s) if quiet_steps else 0.0
    return {
        "name": "soak",
        "figure": round(share, 3),
        "unit": "effective training-time share",
        "holds": not found.violations and hurt_steps > 0,
        "minutes": minutes,
        "every_s": every_s,
        "faults": len(faults),
        "by_role": {name: faults.count(name) for name in victims},
        "resumes": run.resumes,
        "steps": run.steps(),
        "steps_per_s": {
            "without_faults": round(quiet_steps / quiet_s, 3),
            "with_faults": round(hurt_steps / hurt_s, 3),
        },
        "rss_mib_per_min": {
            "driver": slope_within(memory.drivers),
            "all": slope_within(memory.trees),
        },
        "lost": found.lost,
        "trained_twice": found.trained_twice,
        "stale_writes_accepted": found.stale_writes_accepted,
        "violations": found.violations,
        "seed": seed,
    }


def _strike(run: Driven, name: str, victims: dict[str, str]) -> bool:
    """Kill one process; False if there is none such now."""
    if name == "driver":
        assert run.process is not None
        run.process.kill()
        run.process.wait(timeout=30)
        return True
    victim = run.find(victims[name])
    with contextlib.suppress(psutil.Error):
        if victim is not None:
            victim.kill()
            return True
    return False


def _end(run: Driven) -> None:
    assert run.process is not None
    run.process.kill()
    run.process.wait(timeout=30)


def main(arguments: Sequence[str]) -> int:
    """Soak, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two faults")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    asked = parser.parse_args(arguments)
    is_vllm = asked.engine == "vllm"
    report = Report(asked.seed, is_short=False)
    sys.stdout.write(f"seed {asked.seed}, everything below {report.folder}\n")
    victims = VICTIMS | (ENGINE_PROCESS if is_vllm else {})
    overrides = ENGINE if is_vllm else {}
    with driven(report.folder, report.model(), "soak", 10**6, overrides) as run:
        figures = soak(run, victims, asked.minutes, asked.every, asked.seed)
    sys.stdout.write(json.dumps(figures | {"engine": asked.engine}) + "\n")
    if figures["holds"]:
        shutil.rmtree(report.folder)
    return int(not figures["holds"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
