"""What ``train``, ``resume`` and ``ladder`` do with a ladder."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from cluster.ladder import Runner, climb, require_unfinished
from cluster.ladder_checks import check_rungs
from cluster.ladder_directory import LadderDirectory, require_absent
from cluster.placement import prepare_ray
from cluster.resume_point import newest_checkpoint
from cluster.run_directory import RunDirectory, recorded
from safeladder.config import Config
from safeladder.ladder_config import Ladder


def train_ladder(ladder: Ladder) -> int:
    """Check every rung, then climb in a new folder; returns the exit code."""
    require_absent(ladder)
    prepare_ray(ladder.rungs[0].config)
    check_rungs(ladder)
    return _climb(LadderDirectory.create(ladder))


def resume_ladder(path: Path) -> int:
    """Go on in the rung that was running; returns the exit code."""
    directory = LadderDirectory.open(path)
    require_unfinished(directory)
    ladder = directory.ladder()
    prepare_ray(ladder.rungs[0].config)
    check_rungs(ladder)
    return _climb(directory)


def _climb(directory: LadderDirectory) -> int:
    from cluster.driver import preemptible

    with preemptible():
        return climb(directory, _runner(), typer.echo)


def _runner() -> Runner:
    from cluster import driver

    def train(config: Config) -> int:
        with recorded(config.run.directory, take_over=False):
            return driver.train(config)

    def resume(path: Path) -> int:
        with recorded(path, take_over=True):
            return driver.resume(path)

    def newest(run: RunDirectory) -> Path | None:
        return newest_checkpoint(run)[0]

    return Runner(train, resume, newest)


def ladder_command(path: Path, *, as_json: bool) -> int:
    """Print the rungs; returns the exit code."""
    directory = LadderDirectory.open(path)
    lineage = directory.read_lineage()
    if as_json:
        typer.echo(json.dumps(asdict(lineage), ensure_ascii=False))
        return 0
    table = Table("rung", "stage", "steps", "ended", "starts from")
    for record in lineage.rungs:
        ended = "running" if record.end is None else str(record.exit.get("reason", ""))
        table.add_row(record.run, record.stage, str(record.steps), ended, record.start.path)
    for rung in directory.ladder().rungs[len(lineage.rungs) :]:
        table.add_row(rung.folder, getattr(rung.config, "stage", "rl"), "", "not begun", "")
    Console(file=sys.stdout).print(table)
    return 0
