"""What ``safeladder train`` and ``safeladder resume`` call: check first, then run.

Nothing heavy is imported before everything has been checked, so that a mistake is told within
seconds. Owns the signal that ends a run in order; ``cluster.run`` has the stages.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.checks import preflight
from cluster.placement import arm_commit_points
from cluster.resume_point import ResumePoint
from cluster.run_directory import RunDirectory
from safeladder.config import Config
from safeladder.errors import NotResumableError, PreemptedError, TrippedError


def train(config: Config) -> int:
    """Run ``config`` in a new run directory; returns the exit code. Raises ``SafeladderError``."""
    RunDirectory.require_absent(config)
    preflight(config)
    with preemptible():
        directory = RunDirectory.create(config)
        return _execute(config, directory, ResumePoint.of_a_new_run(config))


def resume(run_dir: Path) -> int:
    """Go on with an earlier run from its newest checkpoint that verifies. Raises
    ``NotResumableError`` for a run that has finished."""
    directory = RunDirectory.open(run_dir)
    config = directory.config()
    status = directory.status()
    if status is not None and status.state == "finished":
        raise NotResumableError(
            f"{run_dir} has already finished all of its {status.step} steps: there is nothing "
            f"to go on with; train longer under another run.name"
        )
    point = ResumePoint.find(config, directory)
    preflight(config)
    with preemptible():
        return _execute(config, directory, point)


@contextmanager
def preemptible() -> Iterator[None]:
    """While it is open, SIGTERM raises ``PreemptedError`` where the program stands; one more does
    not disturb the way out."""
    previous = signal.signal(signal.SIGTERM, _preempt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _preempt(*_: object) -> None:
    if not isinstance(sys.exception(), PreemptedError):
        raise PreemptedError("told to stop by SIGTERM; go on by `safeladder resume`")


def _execute(config: Config, directory: RunDirectory, point: ResumePoint) -> int:
    arm_commit_points()
    if config.stage != "rl":
        from cluster.stage_run import StageRun

        return StageRun(config, directory, point).execute()
    from cluster.run import Run

    while True:
        try:
            return Run(config, directory, point).execute()
        except TrippedError as tripped:
            if tripped.action != "rollback":
                raise
            directory.record_failure(tripped)
            config = directory.config()
            point = ResumePoint.find(config, directory)
