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
from cluster.lineage import Lineage
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
    """Print the rungs and what they were worth; returns the exit code."""
    from cluster.ladder_table import columns_of, evaluations  # it loads Ray, which train may not

    directory = LadderDirectory.open(path)
    lineage = directory.read_lineage()
    columns = columns_of(directory)
    if as_json:
        rows = [column.as_row() for column in columns]
        typer.echo(json.dumps(asdict(lineage) | {"evaluations": rows}, ensure_ascii=False))
        return 0
    console = Console(file=sys.stdout, markup=False)
    console.print(_rungs(directory, lineage))
    if columns:
        console.print(evaluations(columns))
        console.print(
            "Shares in %, beside them the change in points and relative to the base (where that is "
            "10 % or more), and the 95 % interval of the change."
        )
    return 0


def _rungs(directory: LadderDirectory, lineage: Lineage) -> Table:
    table = Table("rung", "stage", "steps", "ended", "probes", "starts from", title="Rungs")
    for record in lineage.rungs:
        ended = "not ended" if record.end is None else str(record.exit.get("reason", ""))
        probes = ", ".join(f"{name} {value:.3f}" for name, value in record.probes.items())
        start = record.start.path
        table.add_row(record.run, record.stage, str(record.steps), ended, probes, start)
    for rung in directory.ladder().rungs[len(lineage.rungs) :]:
        table.add_row(rung.folder, rung.config.stage, "", "not begun", "", "")
    return table
