"""Verbs that look at a run while it trains, or change it: ``principles``, ``fleets``, ``why``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.command_line import AsJson, Debug, RunFolder, app, finish, set_up_logging


@app.command()
def principles(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that is training.")],
    config: Annotated[
        list[Path], typer.Option("--config", "-c", help="Overlay of the run's config; repeatable.")
    ],
    wait: Annotated[float, typer.Option(help="Seconds to wait for the run.")] = 900.0,
    debug: Debug = False,
) -> None:
    """Swap, add, remove or re-weight principles while a run trains."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.swaps import swap_principles

        typer.echo(swap_principles(run_dir, config, wait))
        return 0

    finish(run, debug)


@app.command()
def fleets(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run that is training.")],
    sizes: Annotated[
        list[str] | None,
        typer.Option("--set", help="fleet=engines, such as h100=6; may be repeated."),
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the run.")] = 60.0,
    debug: Debug = False,
) -> None:
    """Show what the rollout engines of a run measured; with --set, change how many there are."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.fleet_command import fleets_command

        return fleets_command(run_dir, sizes or [], wait)

    finish(run, debug)


@app.command()
def why(
    run_dir: RunFolder,
    steps: Annotated[int, typer.Option(min=1, help="Look at the newest so many steps.")] = 20,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a run waits for, where the time of its steps goes, and what to attack first."""

    def run() -> int:
        from cluster.why_command import why_command

        return why_command(run_dir, steps, as_json=as_json)

    finish(run, debug)
