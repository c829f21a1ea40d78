"""``safeladder plan``: the best split of a cluster between roles, before anything is started.

Gathers what ``split_plan`` needs from the config, an engine's profile and the options, and prints a
table. Every assumption that it makes itself is printed too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import typer
from rich.console import Console
from rich.table import Table

from cluster.history import read_history
from cluster.length_distribution import Lengths, LogNormalLengths, MeasuredLengths
from cluster.modelled_engine import DecodeCurve
from cluster.profile_file import read_profiles
from cluster.run_directory import RunDirectory
from cluster.split_plan import TAIL_SHARE, PlanInputs, PlannedSplit, best_planned, plan_splits
from safeladder.config import Config
from safeladder.engine_profile import EngineProfile
from safeladder.errors import ConfigError
from safeladder.paths import read_bytes

MAX_LINES = 12
"""Of the table; the best split and its neighbours are always among them."""

MAX_VERDICT_S = 1e6
MAX_LENGTH = 10**9
"""Tokens of one response."""


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What the command line adds to a config."""

    gpus: int
    run: Path | None
    """An earlier run: stands in for the three that follow."""
    profile: Path | None
    """A ``profiles.json``."""
    lengths: str | None
    """``mean,max[,sigma]``, or a JSON file with a list of lengths."""
    train_tokens_per_s: float | None
    """Sampled tokens that one learner GPU trains in a second."""
    scaling: float
    fleet: str | None
    """Of the profiles, if they have several."""
    verdict_s: float
    as_json: bool


def plan_command(config: Config, options: PlanOptions) -> int:
    """Print the splits and the best of them. Raises ``ConfigError`` for what is missing or cannot
    be."""
    inputs = plan_inputs(config, options)
    try:
        found = plan_splits(inputs)
    except ValueError as error:
        raise ConfigError(f"--gpus {options.gpus}: {error}") from None
    best = best_planned(found)
    if options.as_json:
        rows = [_row(split) for split in found]
        typer.echo(json.dumps({"best": _row(best), "splits": rows}))
        return 0
    console = Console(file=sys.stdout, highlight=False, markup=False)
    console.print(_table(found, best, inputs.engine_gpus))
    for line in _sentences(config, inputs, best):
        typer.echo(line)
    return 0


def plan_inputs(config: Config, options: PlanOptions) -> PlanInputs:
    """Everything that the plan rests on."""
    rollout, learner = config.rollout, config.learner
    engine_units, rank_units = _units(config)
    profile = _profile(options)
    try:
        curve = DecodeCurve.from_profile(dict(profile.speeds))
    except ValueError as error:
        raise ConfigError(f"the engine's profile: {error}") from None
    if not 0 < options.scaling <= 1:
        raise ConfigError(f"--scaling {options.scaling}: write a number above 0, at most 1")
    if not 0 < options.verdict_s <= MAX_VERDICT_S:
        raise ConfigError(
            f"--verdict-s {options.verdict_s}: write seconds above 0, at most {MAX_VERDICT_S:g}"
        )
    return PlanInputs(
        num_gpus=options.gpus,
        engine_gpus=engine_units,
        learner_unit=rank_units,
        curve=curve,
        max_sequences=profile.max_sequences,
        kv_tokens=profile.kv_tokens,
        prompt_tokens=float(rollout.max_prompt_tokens),
        lengths=_lengths(config, options),
        group_size=rollout.group_size,
        groups_per_step=config.schedule.groups_per_step,
        max_staleness=config.schedule.max_staleness,
        max_concurrent_groups=rollout.max_concurrent_groups,
        train_tokens_per_gpu_s=_train_rate(options) / learner.epochs,
        train_scaling=options.scaling,
        calls_per_group=max(len(route) for route in config.routes.values()),
        verdict_p99_s=options.verdict_s,
    )


def _units(config: Config) -> tuple[int, int]:
    """Whole GPUs of an engine and of a rank; cores if the config reserves no GPUs."""
    rollout, learner = config.rollout, config.learner
    if rollout.num_gpus > 0:
        return max(1, round(rollout.num_gpus)), max(1, round(learner.num_gpus))
    return max(1, round(rollout.num_cpus)), max(1, round(learner.num_cpus))


def _profile(options: PlanOptions) -> EngineProfile:
    """Of the fleet's first engine that measured its speed."""
    path = options.profile
    if path is None and options.run is not None:
        path = RunDirectory.open(options.run).profiles
    if path is None:
        raise ConfigError("how fast is an engine? Give --profile profiles.json, or --run RUN")
    fleets = read_profiles(path)
    if not fleets:
        raise ConfigError(
            f"{path} is not there, or has no profile of an engine; name the profiles.json of a run "
            "that has trained"
        )
    name = options.fleet or next(iter(fleets))
    if name not in fleets or (options.fleet is None and len(fleets) > 1):
        names = ", ".join(sorted(fleets))
        raise ConfigError(f"{path} has the fleets {names}; choose one with --fleet")
    measured = [profile for profile in fleets[name].values() if profile.speeds]
    if not measured:
        raise ConfigError(f"{path}: no engine of {name} has measured its speed; run it once")
    return measured[0]


def _lengths(config: Config, options: PlanOptions) -> Lengths:
    """Given, or as in the earlier run with the usual shape."""
    cap = config.rollout.max_new_tokens
    if options.lengths is None:
        if options.run is None:
            raise ConfigError("how long are responses? Give --lengths mean,max, or --run RUN")
        text = f"{_median_of(options.run, ('train/length_mean',))},{cap}"
    else:
        text = options.lengths
    try:
        if text.endswith(".json"):
            return MeasuredLengths([_tokens(n) for n in json.loads(read_bytes(Path(text)))])
        mean, longest, *sigma = (float(part) for part in text.split(","))
        return LogNormalLengths(mean, _tokens(longest), *sigma)
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ConfigError(
            f"--lengths {text}: write mean,max or mean,max,sigma, or name a JSON file with a list "
            f"of lengths ({error})"
        ) from None


def _tokens(number: float) -> int:
    if not number <= MAX_LENGTH:
        raise ValueError(f"no response has {number:g} tokens")
    return int(number)


def _train_rate(options: PlanOptions) -> float:
    """Sampled tokens a second of one learner GPU, one pass over the batch."""
    rate = options.train_tokens_per_s
    if rate is None:
        if options.run is None:
            raise ConfigError(
                "how fast is the learner? Give --train-tokens-per-s, of one of its GPUs, or --run "
                "RUN"
            )
        earlier = RunDirectory.open(options.run).config()
        num_gpus = earlier.learner.ranks * _units(earlier)[1]
        tokens = _median_of(options.run, ("train/trained_tokens", "time/train_s"))
        rate = tokens * earlier.learner.epochs / num_gpus
    if not 0 < rate < math.inf:
        raise ConfigError(f"--train-tokens-per-s {rate}: write a number above 0")
    return rate


def _median_of(run: Path, columns: tuple[str, ...]) -> float:
    """Of a column over the steps of a run, or of the first column over the second."""
    rows = read_history(run).get("train", [])
    values = [_ratio(row, columns) for row in rows if all(row.get(name) for name in columns)]
    if not values:
        raise ConfigError(f"{run} has no step with {' and '.join(columns)}; name another --run")
    return median(values)


def _ratio(row: Mapping[str, float], columns: tuple[str, ...]) -> float:
    first, *rest = (float(row[name]) for name in columns)
    return first / rest[0] if rest else first


def _row(split: PlannedSplit) -> dict[str, object]:
    bound = asdict(split.bound)
    return {
        "rollout_gpus": split.rollout_gpus,
        "learner_gpus": split.learner_gpus,
        "step_s": split.step_s,
        **bound,
        "binding": split.bound.binding,
        "learner_bubble": split.training_bubble,
        "rollout_bubble": split.generation_bubble,
        "staleness": split.staleness,
        "running_per_engine": split.running_per_engine,
        "verifier_calls": split.verifier_calls,
    }


def _table(found: list[PlannedSplit], best: PlannedSplit, engine_gpus: int) -> Table:
    heads = "engines", "rollout", "learner", "step", "binds", "idle", "engines idle", "age", "calls"
    table = Table(*heads, box=None, header_style="")
    for split in _chosen(found, best):
        table.add_row(
            f"{split.rollout_gpus // engine_gpus}{' <' if split is best else ''}",
            str(split.rollout_gpus),
            str(split.learner_gpus),
            f"{split.step_s:.1f} s",
            split.bound.binding,
            f"{split.training_bubble:.0%}",
            f"{max(0.0, split.generation_bubble):.0%}",
            f"{split.staleness:.1f}",
            str(split.verifier_calls),
        )
    return table


def _chosen(found: list[PlannedSplit], best: PlannedSplit) -> list[PlannedSplit]:
    """All, or the best with its neighbours and others at equal distances."""
    place = found.index(best)
    every = -(-len(found) // (MAX_LINES - 3))
    return [s for i, s in enumerate(found) if abs(i - place) <= 1 or i % every == 0]


def _sentences(config: Config, inputs: PlanInputs, best: PlannedSplit) -> list[str]:
    unit = "GPUs" if config.rollout.num_gpus > 0 else "cores"
    engines = best.rollout_gpus // inputs.engine_gpus
    left = inputs.num_gpus - best.rollout_gpus - best.learner_gpus
    return [
        f"rollout, learner: {unit}; idle: the learner waits; age: mean staleness in versions; "
        "calls: groups that verifiers must be able to judge at a time",
        f"best: rollout.actors={engines} ({best.rollout_gpus} {unit}), learner.ranks="
        f"{best.learner_gpus // inputs.learner_unit} ({best.learner_gpus} {unit}); a step takes "
        f"{best.step_s:.2f} s, bound by {best.bound.binding}"
        + (f"; {left} {unit} are left over" if left else ""),
        f"assumes {best.running_per_engine:.0f} sequences decoded together in an engine, and a "
        f"group judged within {inputs.verdict_p99_s:g} s",
        f"assumes responses of {inputs.lengths.mean:.0f} tokens on average, "
        f"{inputs.lengths.quantile(0.999):.0f} for one in 1000; one of the learner's {unit} trains "
        f"{inputs.train_tokens_per_gpu_s:.0f} tokens/s, n of them n^{inputs.train_scaling:g} times "
        "as many; all engines alike",
        "leaves out publication and loading of weights, deaths, and the "
        f"{1 - TAIL_SHARE:.0%} of groups that would be too old; where both roles take the same "
        "time a step is a few per cent longer",
    ]
