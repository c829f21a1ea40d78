"""Verbs that look into a model with constraints: ``probe order`` and ``probe importance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.command_line import Debug, app, finish, set_up_logging
from cluster.engine_options import (
    CpuKvCacheGib,
    Dtype,
    Engine,
    MaxNumSeqs,
    MaxPromptTokens,
    TensorParallelSize,
    Threads,
)
from safeladder.errors import ConfigError

probe = typer.Typer(
    help="What the order of constraints does to a model, and which of them it looks at.",
    no_args_is_help=True,
)
app.add_typer(probe, name="probe")

Model = Annotated[Path, typer.Argument(help="Folder of the model, in Hugging Face layout.")]
Prompts = Annotated[
    Path, typer.Option(help="JSON lines: rows of PBIF, or compositions of `curricula`.")
]
Out = Annotated[Path, typer.Option(help="Folder of answers and report; the same one goes on.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the rows and the orders.")]
Difficulty = Annotated[
    Path | None, typer.Option(help="difficulty.json of a probe or a run; else a first pass.")
]
Template = Annotated[Path | None, typer.Option(help="Jinja, instead of the tokenizer's own.")]
Readings = Annotated[Literal["reference", "hardened"], typer.Option(help="How the rules are read.")]


@probe.command()
def order(
    model: Model,
    prompts: Prompts,
    out: Out,
    rounds: Annotated[str, typer.Option(help="single, multi, or both.")] = "single,multi",
    num_prompts: Annotated[int, typer.Option(min=1, help="Rows drawn from the file.")] = 50,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 512,
    rotations: Annotated[
        bool, typer.Option("--rotations", help="Also pairs of orders that share one CDDI.")
    ] = False,
    difficulty: Difficulty = None,
    reading: Readings = "reference",
    seed: Seed = 0,
    deadline_s: Annotated[float, typer.Option(min=0, help="For one trial.")] = 600.0,
    engine: Engine = "vllm",
    dtype: Dtype = "bfloat16",
    chat_template: Template = None,
    max_prompt_tokens: MaxPromptTokens = 2048,
    max_num_seqs: MaxNumSeqs = 64,
    tensor_parallel_size: TensorParallelSize = 1,
    cpu_kv_cache_gib: CpuKvCacheGib = 1.0,
    threads: Threads = 1,
    debug: Debug = False,
) -> None:
    """Ask the same instructions at the 12 levels of CDDI, in single and multi round."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.order_probe import OrderProbe, order_probe_command
        from cluster.probe_model import ProbeModel

        asked = ProbeModel(
            path=model,
            engine=engine,
            dtype=dtype,
            chat_template=chat_template,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            max_num_seqs=max_num_seqs,
            tensor_parallel_size=tensor_parallel_size,
            cpu_kv_cache_gib=cpu_kv_cache_gib,
            threads=threads,
        )
        return order_probe_command(
            OrderProbe(
                model=asked,
                prompts=prompts,
                out=out,
                rounds=_rounds(rounds),
                num_prompts=num_prompts,
                rotations=rotations,
                difficulty=difficulty,
                seed=seed,
                deadline_s=deadline_s,
                reading=reading,
            )
        )

    finish(run, debug)


@probe.command()
def importance(
    model: Model,
    prompts: Prompts,
    difficulty: Annotated[Path, typer.Option(help="difficulty.json of an order probe.")],
    out: Out,
    num_prompts: Annotated[int, typer.Option(min=1, help="Rows drawn from the file.")] = 6,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 200,
    levels: Annotated[str, typer.Option(help="CDDI, by comma.")] = "-1,-0.05,1",
    density_levels: Annotated[int, typer.Option(help="L of the density.")] = 10,
    density_threshold: Annotated[int, typer.Option(help="b of the density.")] = 0,
    density_power: Annotated[float, typer.Option(help="p of the density.")] = 4.0,
    reading: Readings = "reference",
    seed: Seed = 0,
    chat_template: Template = None,
    threads: Threads = 1,
    debug: Debug = False,
) -> None:
    """Measure by gradients how much each constraint weighs in the model's own answers."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.importance_probe import ImportanceProbe, importance_probe_command
        from cluster.probe_model import ProbeModel
        from evals.importance_spans import Density

        asked = ProbeModel(
            path=model,
            engine="transformers",
            dtype="float32",
            chat_template=chat_template,
            max_new_tokens=max_new_tokens,
            threads=threads,
        )
        try:
            density = Density(
                levels=density_levels, threshold=density_threshold, power=density_power
            )
        except ValueError as error:
            raise ConfigError(f"--density-…: {error}") from None
        return importance_probe_command(
            ImportanceProbe(
                model=asked,
                prompts=prompts,
                difficulty=difficulty,
                out=out,
                num_prompts=num_prompts,
                levels=_levels(levels),
                density=density,
                seed=seed,
                reading=reading,
            )
        )

    finish(run, debug)


def _levels(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(-1 <= level <= 1 for level in found):
        raise ConfigError(f"--levels {text!r}: expected numbers from -1 to 1, by comma")
    return found


def _rounds(text: str) -> tuple[Literal["single", "multi"], ...]:
    found: list[Literal["single", "multi"]] = []
    for name in text.split(","):
        match name.strip():
            case "single":
                found.append("single")
            case "multi":
                found.append("multi")
            case other:
                raise ConfigError(f"--rounds: {other!r} is neither single nor multi")
    return tuple(dict.fromkeys(found))
