"""A driver that was thought dead: stopped at a commit point, replaced by ``resume``, woken up.
All that it then tries to write must be refused, and it must end by itself."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import psutil

from safeladder.errors import FencedError
from tests.chaos import checker
from tests.chaos.driven import Driven, Stuck, driven
from tests.chaos.kills import finish
from tests.chaos.outcome import Case, Report

POINTS = (
    "generate.sent",
    "admitted.committed",
    "train.asked",
    "step.told",
    "save_checkpoint.asked",
)
SHORT = ("train.asked",)
END_S = 120.0


def run(report: Report) -> Iterator[Case]:
    """One run, whose driver is replaced again and again while it is stopped."""
    points = list(SHORT if report.is_short else POINTS)
    random.Random(report.seed).shuffle(points)
    with driven(report.folder, report.model(), "zombies", 60) as run:
        run.train()
        run.await_steps(2)
        _end(run)
        for point in points:
            try:
                yield _replace(run, point, report)
            except Stuck as stuck:
                yield Case("zombie", point, False, str(stuck))
                break
        if not run.is_running:
            run.resume()
        yield finish(run, "zombie", report)


def _replace(run: Driven, point: str, report: Report) -> Case:
    run.armed(f"{point}:2:stop")
    old = run.process
    assert old is not None
    stopped = psutil.Process(old.pid)
    run.await_that(lambda: stopped.status() == psutil.STATUS_STOPPED, f"a stop at {point}")
    run.resume()
    run.await_point("trained.committed")
    count = len(checker.points(run.witness))
    began = time.monotonic()
    os.kill(old.pid, signal.SIGCONT)
    code = old.wait(timeout=END_S)
    took = time.monotonic() - began
    wrote = [
        row["point"]
        for row in checker.points(run.witness)[count:]
        if row["pid"] == old.pid and row["point"] in checker.LASTING
    ]
    report.stale_writes_refused += code == FencedError.exit_code
    told = f"ended with {code} after {took:.1f} s" + (f"; it wrote {wrote}" if wrote else "")
    run.await_point("trained.committed")
    _end(run)
    return Case("zombie", point, code == FencedError.exit_code and not wrote, told)


def _end(run: Driven) -> None:
    assert run.process is not None
    run.process.kill()
    run.process.wait(timeout=30)
