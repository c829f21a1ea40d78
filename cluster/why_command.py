"""``safeladder why``: why a run, live or ended, is no faster, and what to attack first."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import typer

from cluster.history import read_history
from cluster.live import LiveStatus, read_live
from cluster.run_directory import RunDirectory, Status
from cluster.step_gap import StepGap, step_gap
from safeladder.errors import ConfigError

OLD_S = 10.0
"""A look that is older comes from a driver that hangs or is gone."""


def why_command(run_dir: Path, newest: int, *, as_json: bool) -> int:
    """Print what the run waits for now, and where the time of its newest steps went. Reads only.

    Raises ``ConfigError`` if nothing is known yet, ``NotResumableError`` if there is no run.
    """
    run = RunDirectory.open(run_dir)
    if (stage := run.config().stage) != "rl":
        raise ConfigError(
            f"{run.path} is of stage: {stage}: its learner passes over rows and waits for nobody; "
            "metrics.jsonl has the seconds of each step"
        )
    status, live = run.status(), read_live(run)
    gap = step_gap(read_history(run.path).get("train", []), newest)
    if gap is None and live is None:
        raise ConfigError(
            f"{run.path}: no step is trained yet and nobody has looked at the run; ask again once "
            "it says `training`"
        )
    if as_json:
        typer.echo(json.dumps(_as_json(status, live, gap)))
        return 0
    for line in [*_now(run, status, live), *([] if gap is None else describe(gap))]:
        typer.echo(line)
    return 0


def describe(gap: StepGap) -> list[str]:
    """The gap in lines, for a terminal."""
    return [
        f"a step takes {gap.step_s:.2f} s (median of {gap.steps}), {100 * gap.share:.0f} % of its "
        f"speed of light: side by side and without loss its work takes {gap.light_s:.2f} s",
        f"  learner   trains {gap.train_s:.2f} s, waits {gap.wait_s:.2f} s "
        f"(bubble {100 * gap.learner_bubble:.0f} %), publishes, saves, reads {gap.other_s:.2f} s",
        f"  engines   write {gap.generate_s:.2f} s, idle {gap.idle_s:.2f} s, load weights "
        f"{gap.load_s:.2f} s (bubble {100 * gap.engine_bubble:.0f} %)",
        f"  groups    slowest is written {gap.tail_s:.2f} s longer than the median one; scored "
        f"within {gap.score_p99_s:.2f} s (p99); wait {gap.queue_s:.2f} s for their step",
        *(
            f"  {name:9s} calls wait for a slot {100 * share:.0f} % of the time"
            for name, share in gap.full.items()
            if share > 0
        ),
        "attack first:",
        *(f"  {loss.name}, {loss.seconds:.2f} s a step: {loss.advice}" for loss in gap.losses),
    ]


def _has_ended(status: Status | None) -> bool:
    return status is not None and status.state in ("finished", "failed")


def _now(run: RunDirectory, status: Status | None, live: LiveStatus | None) -> list[str]:
    if status is not None and _has_ended(status):
        reason = f": {status.reason}" if status.reason else ""
        return [f"{run.path} has {status.state}{reason}"]
    if live is None:
        return [f"{run.path}: {status.state if status else 'no status'}; nobody has looked yet"]
    age = f"{live.age_s:.0f} s ago"
    lines = [f"{run.path}, {age}: version {live.version}, published {live.published_version}"]
    if live.age_s > OLD_S:
        lines.append(
            f"! the last look is {age} ({_clock(live.unix_s)}): the driver hangs or is gone; "
            "`safeladder resume` goes on with the run"
        )
    if live.running_step is not None:
        lines.append(f"  learner trains step {live.running_step}")
    lines += [f"  {wait}" for wait in live.waits]
    counts = ", ".join(f"{count} {state}" for state, count in live.counts.items() if count)
    return [*lines, f"  groups: {counts}"]


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))


def _as_json(status: Status | None, live: LiveStatus | None, gap: StepGap | None) -> dict[str, Any]:
    return {
        "state": None if status is None else status.state,
        "age_s": None if live is None else round(live.age_s, 1),
        "waits": [] if live is None or _has_ended(status) else list(live.waits),
        "gap": None if gap is None else gap.as_summary(),
    }
