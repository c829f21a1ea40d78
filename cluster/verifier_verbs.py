"""Verbs that need no run: ``score``, ``serve-verifier``, ``schema``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.command_line import Arguments, Debug, Overlays, app, finish, load, set_up_logging


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="JSON lines: data rows with a column `response`.")],
    arguments: Arguments = None,
    config: Overlays = None,
    out: Annotated[Path | None, typer.Option(help="File that gets every verdict.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first rows only.")] = None,
    debug: Debug = False,
) -> None:
    """Score a file of answers with the principles of a config: no run, no GPU."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.score_command import score_command

        return score_command(load(arguments, config), file, out, limit)

    finish(run, debug)


@app.command("serve-verifier")
def serve_verifier(
    arguments: Arguments = None,
    config: Overlays = None,
    principle: Annotated[
        list[str] | None, typer.Option(help="Principle to serve; may be repeated. Default: all.")
    ] = None,
    bind: Annotated[str, typer.Option(help="host:port; port 0 picks a free one.")] = "127.0.0.1:0",
    ready_file: Annotated[
        Path | None, typer.Option(help="File that gets the address once the service answers.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that callers must send.")
    ] = None,
    metrics_bind: Annotated[
        str | None, typer.Option(help="Loopback host:port that answers Prometheus.")
    ] = None,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="End when the starting process ends.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve the verifiers of a config over gRPC until it is told to stop."""
    set_up_logging(debug, is_service=True)

    def run() -> int:
        from cluster.verifier_service import run_service

        run_service(
            load(arguments, config),
            principle,
            bind,
            ready_file=ready_file,
            token_file=token_file,
            metrics_bind=metrics_bind,
            die_with_parent=die_with_parent,
        )
        return 0

    finish(run, debug)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    from safeladder.config_loading import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
