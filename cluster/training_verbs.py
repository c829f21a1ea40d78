"""Verbs that start a run, or say what it would take: ``train``, ``resume``, ``check``, ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.command_line import (
    Arguments,
    AsJson,
    Debug,
    Overlays,
    RunFolder,
    app,
    finish,
    load,
    load_rungs,
    set_up_logging,
)
from safeladder.errors import ConfigError


@app.command()
def train(arguments: Arguments = None, config: Overlays = None, debug: Debug = False) -> None:
    """Train a policy: a new run in its own folder, or all rungs of a ladder."""
    set_up_logging(debug)

    def run() -> int:
        if (ladder := load_rungs(arguments, config)) is not None:
            from cluster.ladder_command import train_ladder

            return train_ladder(ladder)
        resolved = load(arguments, config)
        from cluster.placement import prepare_ray
        from cluster.run_directory import recorded

        with recorded(resolved.run.directory, take_over=False):
            prepare_ray(resolved)
            from cluster.driver import train as train_run

            return train_run(resolved)

    finish(run, debug)


@app.command()
def resume(run_dir: RunFolder, debug: Debug = False) -> None:
    """Go on with a run from its newest checkpoint that verifies, or with a ladder in the rung that
    was running."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.ladder_directory import is_ladder_folder

        if is_ladder_folder(run_dir):
            from cluster.ladder_command import resume_ladder

            return resume_ladder(run_dir)
        from cluster.placement import prepare_ray
        from cluster.run_directory import RunDirectory, recorded

        directory = RunDirectory.open(run_dir)
        with recorded(directory.path, take_over=True):
            prepare_ray(directory.config())

            from cluster.driver import resume as resume_run

            return resume_run(run_dir)

    finish(run, debug)


@app.command()
def check(
    arguments: Arguments = None,
    config: Overlays = None,
    without_model: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1e5, help="Of a ladder: plan for so many billion parameters, unseen."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Resolve and validate a config, score three sample rows, print the plan; start nothing."""
    set_up_logging(debug)

    def run() -> int:
        import asyncio

        from cluster.check_tables import show_checks
        from cluster.checks import preflight, score_samples
        from cluster.data_checks import check_data, stage_lines
        from cluster.model_folder import read_model_folder
        from cluster.resource_plan import resource_plan
        from safeladder.config_loading import config_hash, resolved_yaml

        if (ladder := load_rungs(arguments, config)) is not None:
            from cluster.ladder_checks import check_command

            return check_command(ladder, without_model)
        if without_model is not None:
            raise ConfigError("--without-model is for ladders; a run is checked where it will run")
        resolved = load(arguments, config)
        typer.echo(resolved_yaml(resolved))
        preflight(resolved)
        prompts = check_data(resolved)
        scored = asyncio.run(score_samples(resolved, prompts))
        show_checks(scored, resource_plan(resolved, read_model_folder(resolved.model.path)))
        for line in stage_lines(resolved):
            typer.echo(line)
        typer.echo(f"{len(prompts)} prompts, config {config_hash(resolved)[:12]}: ready to train")
        return 0

    finish(run, debug)


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
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Predict the best split of GPUs between rollout and learner; start nothing."""

    def run() -> int:
        from cluster.plan_command import PlanOptions, plan_command

        rates = run_dir, profile, lengths, train_tokens_per_s, scaling, fleet, verdict_s
        return plan_command(load(arguments, config), PlanOptions(gpus, *rates, as_json))

    finish(run, debug)


@app.command()
def ladder(run_dir: RunFolder, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what each rung of a ladder made of the model, absolute and relative to the base."""

    def run() -> int:
        from cluster.ladder_command import ladder_command

        return ladder_command(run_dir, as_json=as_json)

    finish(run, debug)
