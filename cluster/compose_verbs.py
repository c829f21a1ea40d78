"""The verbs ``compose …``: seed instructions to instructions with constraints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.command_line import Arguments, Debug, app, finish, set_up_logging

compose = typer.Typer(help="Make instructions with constraints from seeds.", no_args_is_help=True)
app.add_typer(compose, name="compose")


@compose.command()
def hard(
    seeds: Annotated[Path, typer.Option(help="Rows {prompt, id?, constraints?}.")],
    out: Annotated[Path, typer.Option(help="File that gets the rows; must not exist.")],
    constraints: Annotated[str, typer.Option(help="How many: 5, or 1-5 drawn evenly.")] = "1-5",
    types: Annotated[
        list[str] | None, typer.Option("--type", help="Draw this type; may be repeated.")
    ] = None,
    orders: Annotated[str, typer.Option(help="none, fixed, uniform or paired.")] = "uniform",
    cddi: Annotated[float, typer.Option(help="For --orders fixed: 1 is hard to easy.")] = 1.0,
    shape: Annotated[str, typer.Option("--round", help="single or multi.")] = "single",
    per_seed: Annotated[int, typer.Option(min=1, help="Compositions for each seed.")] = 1,
    difficulty: Annotated[
        Path | None, typer.Option(help="difficulty.json of `evaluate-constraints`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    debug: Debug = False,
) -> None:
    """Add constraints that a program can check. The same call writes the same bytes."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.compose_command import HardOptions, compose_hard

        wanted = HardOptions(constraints, types or [], orders, cddi, shape, per_seed, seed)
        return compose_hard(seeds, out, wanted, difficulty)

    finish(run, debug)


@compose.command()
def soft(
    arguments: Arguments = None,
    debug: Debug = False,
) -> None:
    """Add constraints that only a reader can judge; make preference pairs and demonstrations.

    A folder that a composition has left is gone on with: replies are never asked for twice.
    """
    set_up_logging(debug)

    def run() -> int:
        from cluster.soft_command import compose_soft

        return compose_soft(list(arguments or ()))

    finish(run, debug)
