"""The command ``safeladder``: arguments in, one sentence and an exit code out.

Verbs import what they need when they run, so that ``--help`` and ``schema`` are quick. An error of
``safeladder.errors`` ends a verb with its sentence on stderr and its exit code, which also goes
into the run's ``status.json``; ``--debug`` shows the traceback instead. What a verb does stands in
the modules it calls.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from safeladder.errors import ConfigError, SafeladderError

if TYPE_CHECKING:
    from safeladder.config import Config

app = typer.Typer(
    help="Asynchronous reinforcement learning for the safety of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(help="Config files, merged from left to right, and key=value overrides."),
]
Overlays = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="A further config file; may be repeated, later wins."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Entry point of ``safeladder`` and ``python -m cluster``."""
    app(prog_name="safeladder")


@app.command()
def train(arguments: Arguments = None, config: Overlays = None, debug: Debug = False) -> None:
    """Train a policy: a new run in its own folder."""
    _set_up_logging(debug)

    def run() -> int:
        resolved = _load(arguments, config)
        from cluster.placement import prepare_ray
        from cluster.run_directory import recorded

        with recorded(resolved.run.directory, take_over=False):
            prepare_ray(resolved)
            from cluster.driver import train as train_run

            return train_run(resolved)

    _run(run, debug)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")], debug: Debug = False
) -> None:
    """Go on with a run from its newest checkpoint that verifies."""
    _set_up_logging(debug)

    def run() -> int:
        from cluster.placement import prepare_ray
        from cluster.run_directory import RunDirectory, recorded

        directory = RunDirectory.open(run_dir)
        with recorded(directory.path, take_over=True):
            prepare_ray(directory.config())
            from cluster.driver import resume as resume_run

            return resume_run(run_dir)

    _run(run, debug)


@app.command()
def check(arguments: Arguments = None, config: Overlays = None, debug: Debug = False) -> None:
    """Resolve and validate a config, score three sample rows, print the plan; start nothing."""
    _set_up_logging(debug)

    def run() -> int:
        import asyncio

        from cluster.check_tables import show_checks
        from cluster.checks import preflight, score_samples
        from cluster.data_checks import check_data
        from cluster.model_folder import read_model_folder
        from cluster.resource_plan import resource_plan
        from safeladder.config_loading import config_hash, resolved_yaml

        resolved = _load(arguments, config)
        typer.echo(resolved_yaml(resolved))
        preflight(resolved)
        prompts = check_data(resolved)
        scored = asyncio.run(score_samples(resolved, prompts))
        show_checks(scored, resource_plan(resolved, read_model_folder(resolved.model.path)))
        typer.echo(f"{len(prompts)} prompts, config {config_hash(resolved)[:12]}: ready to train")
        return 0

    _run(run, debug)


@app.command()
def plan(
    arguments: Arguments = None,
    config: Overlays = None,
    gpus: Annotated[
        int, typer.Option(min=2, max=10_000, help="GPUs to split; cores if none are reserved.")
    ] = 8,
    run_dir: Annotated[Path | None, typer.Option("--run", help="Measured in this run.")] = None,
    profile: Annotated[Path | None, typer.Option(help="profiles.json of a run.")] = None,
    lengths: Annotated[str | None, typer.Option(help="mean,max[,sigma], or a JSON list.")] = None,
    train_tokens_per_s: Annotated[float | None, typer.Option(help="Of one learner GPU.")] = None,
    scaling: Annotated[float, typer.Option(help="n GPUs train n^scaling times as fast.")] = 1.0,
    fleet: Annotated[str | None, typer.Option(help="Of the profiles.")] = None,
    verdict_s: Annotated[float, typer.Option(help="99th percentile, for a group.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Predict the best split of GPUs between rollout and learner; start nothing."""

    def run() -> int:
        from cluster.plan_command import PlanOptions, plan_command

        rates = run_dir, profile, lengths, train_tokens_per_s, scaling, fleet, verdict_s
        return plan_command(_load(arguments, config), PlanOptions(gpus, *rates, as_json))

    _run(run, debug)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
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

    _run(run, debug)


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
    _set_up_logging(debug)

    def run() -> int:
        from cluster.swaps import swap_principles

        typer.echo(swap_principles(run_dir, config, wait))
        return 0

    _run(run, debug)


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
    _set_up_logging(debug)

    def run() -> int:
        from cluster.fleet_command import fleets_command

        return fleets_command(run_dir, sizes or [], wait)

    _run(run, debug)


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
    _set_up_logging(debug)

    def run() -> int:
        from cluster.score_command import score_command

        return score_command(_load(arguments, config), file, out, limit)

    _run(run, debug)


@app.command()
def verdicts(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
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

    _run(run, debug)


@app.command()
def replay(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    steps: Annotated[str, typer.Option(help="N..M: first and last step, or one step.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Take optimizer steps again from stored batches; exit 7 if one comes out otherwise."""
    _set_up_logging(debug)

    def run() -> int:
        from cluster.placement import behave_as
        from cluster.run_directory import RunDirectory

        behave_as("learner", RunDirectory.open(run_dir).config())
        from cluster.replay_command import replay_steps_command

        return replay_steps_command(run_dir, steps, as_json=as_json)

    _run(run, debug)


@app.command()
def ledger(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Account for every group of a run, live or finished, and audit the books; exit 7 if broken."""

    def run() -> int:
        from cluster.ledger_command import ledger_command

        return ledger_command(run_dir, as_json=as_json)

    _run(run, debug)


@app.command()
def why(
    run_dir: Annotated[Path, typer.Argument(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(min=1, help="Look at the newest so many steps.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a run waits for, where the time of its steps goes, and what to attack first."""

    def run() -> int:
        from cluster.why_command import why_command

        return why_command(run_dir, steps, as_json=as_json)

    _run(run, debug)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    from safeladder.config_loading import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


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
    _set_up_logging(debug, is_service=True)

    def run() -> int:
        from cluster.verifier_service import run_service

        run_service(
            _load(arguments, config),
            principle,
            bind,
            ready_file=ready_file,
            token_file=token_file,
            metrics_bind=metrics_bind,
            die_with_parent=die_with_parent,
        )
        return 0

    _run(run, debug)


def _load(arguments: Sequence[str] | None, overlays: Sequence[Path] | None) -> Config:
    """Positional files come first, then ``--config`` files, then all overrides."""
    from safeladder.config_loading import files_and_overrides, load_config

    files, overrides = files_and_overrides(arguments or ())
    paths = [*files, *(overlays or ())]
    if not paths:
        raise ConfigError("no config file was given: add one, for example configs/demo.yaml")
    return load_config(paths, overrides)


def _run(run: Callable[[], int], debug: bool) -> NoReturn:
    """Exit with the code of ``run``, or of the ``SafeladderError`` that it raised."""
    try:
        code = run()
    except SafeladderError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"safeladder: {error}", err=True)
        code = error.exit_code
    raise typer.Exit(code)


def _set_up_logging(debug: bool, *, is_service: bool = False) -> None:
    if not (debug or is_service):
        # gRPC writes lines of its own about a handshake that fails, beside our sentence. A service
        # keeps them: they are all there is to see of clients that did not get through.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
