"""Verbs that account for what a run did: ``report``, ``verdicts``, ``replay``, ``ledger`` and
``curriculum``."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.command_line import AsJson, Debug, RunFolder, app, finish, set_up_logging
from safeladder.errors import ConfigError


@app.command()
def report(
    run_dir: RunFolder,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave the texts of prompts and answers out.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write report.html again from what a run has left so far."""

    def run() -> int:
        from cluster.report import write_report
        from cluster.run_directory import RunDirectory

        typer.echo(write_report(RunDirectory.open(run_dir), redact=redact))
        return 0

    finish(run, debug)


@app.command()
def verdicts(
    run_dir: RunFolder,
    group: Annotated[str | None, typer.Option(help="epoch/ordinal of a group.")] = None,
    step: Annotated[int | None, typer.Option(help="Verdicts that moved this step.")] = None,
    principle: Annotated[str | None, typer.Option(help="Of this principle only.")] = None,
    status: Annotated[str | None, typer.Option(help="ok, not_applicable or invalid.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show the newest so many.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Compute every trained reward again; exit 7 if one differs."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Show which verdicts a run's verifiers gave, and which update each of them moved."""

    def run() -> int:
        from cluster.score_command import replay_command, verdicts_command

        if replay:
            if principle is not None or status is not None:
                raise ConfigError("--replay takes --group and --step: a reward needs all verdicts")
            return replay_command(run_dir, group, step, as_json=as_json)

        return verdicts_command(
            run_dir, group, step, principle, status, limit=limit, as_json=as_json
        )

    finish(run, debug)


@app.command()
def replay(
    run_dir: RunFolder,
    steps: Annotated[str, typer.Option(help="N..M: first and last step, or one step.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Take optimizer steps again from stored batches; exit 7 if one comes out otherwise."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.placement import behave_as
        from cluster.run_directory import RunDirectory

        behave_as("learner", RunDirectory.open(run_dir).config())
        from cluster.replay_command import replay_steps_command

        return replay_steps_command(run_dir, steps, as_json=as_json)

    finish(run, debug)


@app.command()
def ledger(
    run_dir: RunFolder,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Account for every group of a run, live or finished, and audit the books; exit 7 if broken."""

    def run() -> int:
        from cluster.ledger_command import ledger_command

        return ledger_command(run_dir, as_json=as_json)

    finish(run, debug)


@app.command()
def curriculum(
    run_dir: RunFolder,
    as_json: AsJson = False,
    state: Annotated[
        bool, typer.Option("--state", help="What is known of the prompts, for another run.")
    ] = False,
    debug: Debug = False,
) -> None:
    """What a run asked and why: labels, buckets, passes and the newest draws."""

    def run() -> int:
        from cluster.curriculum_command import curriculum_command

        return curriculum_command(run_dir, as_json=as_json, state=state)

    finish(run, debug)
