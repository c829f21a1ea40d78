"""The verb ``evaluate-constraints``."""

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


@app.command("evaluate-constraints")
def evaluate_constraints(
    files: Annotated[
        list[Path], typer.Argument(help="JSON lines in IFEval's or FollowBench's format.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of answers and report; the same one goes on.")],
    responses: Annotated[Path | None, typer.Option(help="Rows {prompt, response}.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a model to ask instead.")] = None,
    before: Annotated[
        Path | None, typer.Option(help="Rows {prompt, response} of another model to compare with.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option(help="Folder of the model that judges FollowBench's answers.")
    ] = None,
    judge_replies: Annotated[
        Path | None, typer.Option(help="Rows {question, reply} instead of --judge.")
    ] = None,
    reading: Annotated[Literal["reference", "hardened"], typer.Option()] = "reference",
    policy_version: Annotated[
        int, typer.Option(min=0, help="Of the answers, for difficulty.json.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows or groups of each file.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer and reply.")] = 512,
    deadline_s: Annotated[float, typer.Option(min=0, help="For one answer.")] = 600.0,
    engine: Engine = "vllm",
    dtype: Dtype = "bfloat16",
    max_prompt_tokens: MaxPromptTokens = 2048,
    max_num_seqs: MaxNumSeqs = 64,
    tensor_parallel_size: TensorParallelSize = 1,
    cpu_kv_cache_gib: CpuKvCacheGib = 1.0,
    threads: Threads = 1,
    debug: Debug = False,
) -> None:
    """Score how many constraints answers follow: strict and loose, HSR, SSR and CSL."""
    set_up_logging(debug)

    def run() -> int:
        from cluster.constraint_evaluation import ConstraintEvaluation
        from cluster.constraint_evaluation import evaluate_constraints as evaluate
        from cluster.probe_model import ProbeModel

        def asked(path: Path | None) -> ProbeModel | None:
            if path is None:
                return None
            return ProbeModel(
                path=path,
                engine=engine,
                dtype=dtype,
                max_prompt_tokens=max_prompt_tokens,
                max_new_tokens=max_new_tokens,
                max_num_seqs=max_num_seqs,
                tensor_parallel_size=tensor_parallel_size,
                cpu_kv_cache_gib=cpu_kv_cache_gib,
                threads=threads,
            )

        return evaluate(
            ConstraintEvaluation(
                files=files,
                out=out,
                responses=responses,
                model=asked(model),
                before=before,
                judge=asked(judge),
                judge_replies=judge_replies,
                reading=reading,
                policy_version=policy_version,
                limit=limit,
                deadline_s=deadline_s,
            )
        )

    finish(run, debug)
