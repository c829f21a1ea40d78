"""A raylet dies, and the rollout actor that it had started may go on running beside its
replacement. What the old one still answers must count for nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from tests.chaos.driven import Driven, Stuck, driven
from tests.chaos.kills import finish
from tests.chaos.outcome import Case, Report
from tests.chaos.two_nodes import PLACE
from tests.runs.conftest import REPOSITORY


def run(report: Report) -> Iterator[Case]:
    """Rollout actors live on two nodes of their own; the raylet of the one at work is killed."""
    fleets = {"far": {"actors": 1, "labels": PLACE}}
    with driven(report.folder, report.model(), "raylets", 60, {"fleets": fleets}) as run:
        nodes = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.two_nodes"],
            cwd=REPOSITORY, env=run.environment() | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert nodes.stdout is not None
        try:
            address = nodes.stdout.readline().strip()
            if not address:
                report.skipped.append("raylets: no Ray cluster of three nodes comes up here")
                return
            run.amend({"placement": {"address": address}})
            run.train()
            run.await_steps(2)
            yield _kill_raylet(run)
        except Stuck as stuck:
            yield Case("raylet", "killed under a rollout actor", False, str(stuck))
        yield finish(run, "raylet", report)


def _kill_raylet(run: Driven) -> Case:
    run.halt()
    run.go_on()
    run.await_point("generate.sent")
    actor = run.find("ray::rollout")
    raylet = None if actor is None else actor.parent()
    if actor is None or raylet is None or "raylet" not in raylet.name():
        raise Stuck(f"no raylet is the parent of {actor}")
    before, struck = run.steps(), time.monotonic()
    raylet.kill()
    alive_s = 0.0
    told = ""
    while run.is_running and run.steps() < before + run.further:
        with contextlib.suppress(psutil.Error):
            if actor.is_running() and actor.status() != psutil.STATUS_ZOMBIE:
                alive_s = time.monotonic() - struck
        if time.monotonic() - struck > 240:
            raise Stuck("no step within 240 s after a raylet's death")
        time.sleep(0.1)
    if not run.is_running:
        told = "; the driver ended, and was resumed"
        run.resume()
        run.await_point("trained.committed")
    took = time.monotonic() - struck
    told = f"the old actor lived {alive_s:.1f} s after its raylet{told}"
    return Case("raylet", "killed under a rollout actor", True, told, took)
