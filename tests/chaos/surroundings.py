"""Faults of what a run stands on: its verifiers are out of order, its disk is full."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safeladder.errors import EnvironmentUnfitError
from tests.chaos import checker
from tests.chaos.driven import ACTOR, Driven, Stuck, driven
from tests.chaos.kills import finish
from tests.chaos.outcome import Case, Report

OUTAGE_S = 5.0
DISK_MIB = 96
LEFT_KIB = 600
"""Less than a checkpoint of the tiny model."""


def outage(report: Report) -> Iterator[Case]:
    """A verifier hangs, then fails on everything, then is well: training pauses meanwhile."""
    breaker = {
        "reward": {"filter_zero_variance": True, "breaker": {"window": 64, "min_verdicts": 16}}
    }
    with driven(report.folder, report.model(), "outage", 40, breaker, verdict_s=1.0) as run:
        run.train()
        run.await_steps(3)
        for mood in ("hang", "error"):
            try:
                yield _outage(run, mood)
            except Stuck as stuck:
                yield Case("outage", mood, False, str(stuck))
        yield finish(run, "outage", report)


def _outage(run: Driven, mood: str) -> Case:
    pauses = _pauses(run)
    run.mood(ACTOR, mood)
    run.await_that(lambda: _pauses(run) > pauses, "a pause of training")
    time.sleep(1.0)
    halted_at = run.steps()
    time.sleep(OUTAGE_S)
    has_halted = run.steps() == halted_at
    began = time.monotonic()
    run.mood(ACTOR, "ok")
    run.await_steps(halted_at + 2)
    told = "" if has_halted else "training went on in the outage"
    return Case("outage", f"a verifier: {mood}", has_halted, told, time.monotonic() - began)


def _pauses(run: Driven) -> int:
    return sum(row.get("alert") == "pause" for row in checker.lines(run.run / "metrics.jsonl"))


def disk(report: Report) -> Iterator[Case]:
    """The disk fills up while checkpoints are written; the ones before must stay whole."""
    root = report.folder / "disk"
    root.mkdir()
    try:
        with _small_disk(root):
            yield from _full(report, root)
    except PermissionError as error:
        report.skipped.append(f"disk: {error}")


def _full(report: Report, root: Path) -> Iterator[Case]:
    place = {"run": {"root": str(root / "runs")}}
    with driven(report.folder, report.model(), "disk", 60, place) as run:
        try:
            run.train()
            run.await_steps(4)
            free = int(subprocess.check_output(["df", "--output=avail", "-k", root]).split()[-1])
            ballast = root / "ballast"
            ballast.write_bytes(bytes(max(0, free - LEFT_KIB) * 1024))
            code = run.exit_code()
            steps = [m["step"] for m in checker.checkpoints(run.run)]
            whole = [step for step in steps if checker.is_intact(run.run, step)]
            ballast.unlink()
            run.resume()
            is_sound = code == EnvironmentUnfitError.exit_code and bool(whole) and whole == steps
            told = f"ended with {code}; whole checkpoints {sorted(whole)} of {sorted(steps)}"
            yield Case("disk", "full at a checkpoint", is_sound, told)
        except Stuck as stuck:
            yield Case("disk", "full at a checkpoint", False, str(stuck))
        yield finish(run, "disk", report)


@contextmanager
def _small_disk(root: Path) -> Iterator[None]:
    """A tmpfs of its own. Raises ``PermissionError`` where nothing may be mounted."""
    size = f"size={DISK_MIB}m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "safeladder-chaos", root],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise PermissionError(f"no tmpfs may be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", root], check=True)
