"""What the verb ``replay`` prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from cluster.replay_plan import Plan, parse_steps, plan_replay
from cluster.run_directory import RunDirectory
from cluster.step_replay import TOLERANCE, ReplayedStep, replay_steps
from safeladder.errors import ReplayError


def replay_steps_command(run_dir: Path, steps: str, *, as_json: bool) -> int:
    """Take steps again and say of each whether it came out the same. Raises ``ReplayError`` if one
    did not."""
    first, last = parse_steps(steps)
    run = RunDirectory.open(run_dir)
    plan = plan_replay(run, first, last)
    if not as_json:
        _announce(plan)
    done: list[ReplayedStep] = []
    for step in replay_steps(run, plan):
        done.append(step)
        if not as_json:
            typer.echo(_sentence(step, plan))
    different = [one.step for one in done if one.differences]
    if as_json:
        typer.echo(json.dumps(_report(plan, done), indent=1))
    else:
        count = plan.last - plan.start_step - len([s for s in different if s > plan.start_step])
        how = "bit for bit" if plan.is_exact else f"within {TOLERANCE:g}"
        typer.echo(f"{count} of {plan.last - plan.start_step} steps are equal {how}")
    if different:
        names = ", ".join(map(str, different))
        raise ReplayError(f"{run_dir}: what was trained differs from its replay in steps {names}")
    return 0


def _announce(plan: Plan) -> None:
    for why in plan.skipped:
        typer.echo(f"skipped: {why}")
    typer.echo(f"starting from {plan.start}, step {plan.start_step}")
    for why in plan.inexact:
        typer.echo(f"not bit for bit: {why}")
    if plan.inexact:
        typer.echo(f"numbers are compared within {TOLERANCE:g}, weights are not compared")


def _sentence(step: ReplayedStep, plan: Plan) -> str:
    place = "start " if step.step == plan.start_step else "step"
    if step.differences:
        what = "; ".join(f"{d.name} was {d.stored}, is {d.replayed}" for d in step.differences)
        return f"{place} {step.step}: DIFFERS: {what}"
    weights = f"weights {step.digest[:16]}…" if step.is_digest_compared else "weights not compared"
    numbers = f"{step.num_compared} numbers, " if step.num_compared else ""
    return f"{place} {step.step}: equal: {numbers}{weights}"


def _report(plan: Plan, done: list[ReplayedStep]) -> dict[str, object]:
    return {
        "start": str(plan.start),
        "start_step": plan.start_step,
        "is_exact": plan.is_exact,
        "inexact_because": list(plan.inexact),
        "tolerance": None if plan.is_exact else TOLERANCE,
        "skipped": list(plan.skipped),
        "steps": [{**asdict(one), "is_equal": not one.differences} for one in done],
        "is_equal": not any(one.differences for one in done),
    }
