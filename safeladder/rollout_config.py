"""``rollout``: the fleet that generates, its engine, and how it samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeladder.config_section import (
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
)
from safeladder.environment_config import EnvironmentConfig


class VllmConfig(Section):
    """Settings of the vLLM engine."""

    tensor_parallel_size: PositiveInt = 1
    """GPUs of one engine."""
    gpu_memory_utilization: PositiveShare = 0.9
    """Share of GPU memory for weights and cache."""
    cpu_kv_cache_gib: PositiveFloat = 1.0
    """Size of the cache in the CPU build."""
    max_num_seqs: PositiveInt = 64
    """Sequences decoded together."""
    enforce_eager: Flag = True
    """No graph capture: starts faster, decodes slower on GPUs."""


class RolloutConfig(Section):
    """The fleet that generates, and how it samples."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """``transformers`` is small, exact and slow: for tests and deterministic runs."""
    actors: PositiveInt = 1
    """Equal engines; several kinds of them stand in ``fleets`` instead."""
    group_size: Annotated[int, Field(ge=2, strict=True)] = 8
    """Completions of one prompt; advantages compare siblings."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer rendered prompts are dropped with the reason ``failed``."""
    max_new_tokens: PositiveInt = 1024
    """Length limit of a completion: of what is sampled, all turns of a conversation together."""
    temperature: PositiveFloat = 1.0
    """Used by the engine and by the learner alike."""
    top_p: PositiveShare = 1.0
    """Nucleus sampling; below 1 the behavior log-probs belong to the cut distribution."""
    max_concurrent_groups: PositiveInt | None = None
    """Most leases that one engine holds at a time. How many it holds below that follows from how
    full its cache is; null leaves it to the cache alone."""
    profile: Flag = True
    """Each engine measures its speed when it comes up, which takes at most four seconds, and gets
    work accordingly; without, all engines count as equally fast. Deterministic runs never do."""
    group_deadline_s: PositiveFloat = 600.0
    """A lease older than this is interrupted, and goes on in this or another engine from the tokens
    that are there. If there are no new ones, that is a failed attempt."""
    straggler_factor: Annotated[float, Field(ge=1, strict=True)] | None = None
    """A group that takes longer than this times the median goes on in another engine, while one has
    room that is no slower; null leaves it where it is. Meant for engines that are slower than they
    measured: a group that is merely long gains nothing, and its prompt is computed twice."""
    oversample: NonNegativeInt = 0
    """Samples beyond ``group_size``; the group is made of those that finish first, and the others
    are stopped. Cuts the tail, but what is trained is then biased towards short answers: watch
    ``rollout/stopped_tokens``."""
    max_attempts: PositiveInt = 3
    """After so many failed attempts the group is dropped as ``failed``."""
    kv_on_update: Literal["keep", "recompute"] = "keep"
    """Cache of requests in flight at a weight update: keep it (tokens after the update see keys of
    the old weights) or recompute it."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs reserved for each actor."""
    num_cpus: NonNegativeFloat = 1.0
    """Cores reserved for each actor."""
    vllm: VllmConfig = VllmConfig()
    environment: EnvironmentConfig | None = None
    """Samples are conversations with an environment; null makes them single answers."""

    @property
    def max_model_tokens(self) -> int:
        """Context length the engine must hold: prompt + completion + what an environment says."""
        told = 0 if self.environment is None else self.environment.reply_tokens
        return self.max_prompt_tokens + self.max_new_tokens + told

    @property
    def context_keys(self) -> str:
        """The keys whose sum ``max_model_tokens`` is, for messages."""
        keys = ["rollout.max_prompt_tokens", "rollout.max_new_tokens"]
        keys += [] if self.environment is None else ["rollout.environment.reply_tokens"]
        return " + ".join(keys)
