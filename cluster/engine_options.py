"""Options of verbs that start an engine for themselves, without a run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Engine = Annotated[Literal["vllm", "transformers"], typer.Option()]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option()]
MaxPromptTokens = Annotated[int, typer.Option(min=1)]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Decoded together.")]
TensorParallelSize = Annotated[int, typer.Option(min=1, help="GPUs of the engine.")]
CpuKvCacheGib = Annotated[float, typer.Option(min=0)]
Threads = Annotated[int, typer.Option(min=1, help="Of computation.")]
