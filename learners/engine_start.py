"""From a config and a folder to an engine that trains on: the start of a rank, and of a replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from learners.checkpoints import OPTIMIZER, RNG, CheckpointManifest, read_manifest
from learners.deepspeed_engine import DeepspeedEngine, EngineSettings
from learners.policy_model import VALUE_HEAD, load_policy
from safeladder.config import Config
from safeladder.errors import NotResumableError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank among others, and where they meet."""

    rank: int = 0
    world_size: int = 1
    master_address: str = "127.0.0.1"
    master_port: int


def start_engine(
    config: Config, place: Place, model_path: Path, resume_from: Path | None
) -> tuple[DeepspeedEngine, CheckpointManifest | None]:
    """Load the model, or the checkpoint ``resume_from`` (verified by the caller) with its optimizer
    and generator states, and join the other ranks. *Collective.* Sets torch's threads and seed."""
    learner = config.learner
    torch.set_num_threads(config.placement.threads_per_actor)
    torch.use_deterministic_algorithms(config.run.deterministic)
    torch.manual_seed(config.run.seed)
    objective, values = learner.objective, config.value_model
    has_head = config.stage == "rl" and objective.advantage == "gae"
    heads = int(has_head)
    scale = objective.value.head_lr / learner.lr
    if config.stage == "value_model" and values is not None:
        heads, scale = len(values.principles), values.head_lr / values.lr
    if has_head and resume_from is not None and not (resume_from / VALUE_HEAD).is_file():
        raise NotResumableError(
            f"{resume_from} has no {VALUE_HEAD}: it was trained without learner.objective."
            "advantage: gae; resume with the objective it had, or start from it as model.path"
        )
    policy = load_policy(
        model_path,
        dtype=getattr(torch, config.model.dtype),
        temperature=config.rollout.temperature if config.stage == "rl" else 1.0,
        train_last_layers=learner.train_last_layers,
        gradient_checkpointing=learner.gradient_checkpointing,
        value_heads=heads,
        only_values=config.stage == "value_model",
        lora=learner.lora,
        resume_from=resume_from,
    )
    engine = DeepspeedEngine(
        policy,
        EngineSettings(
            zero_stage=learner.zero_stage,
            betas=learner.betas,
            weight_decay=learner.weight_decay,
            max_grad_norm=learner.max_grad_norm,
            timeout_s=learner.step_deadline_s,
            head_lr_scale=scale,
        ),
        rank=place.rank,
        world_size=place.world_size,
        master_address=place.master_address,
        master_port=place.master_port,
    )
    if resume_from is None:
        return engine, None
    manifest = read_manifest(resume_from)
    engine.load_optimizer(load_file(resume_from / OPTIMIZER), manifest.num_updates)
    torch.set_rng_state(load_file(resume_from / RNG)["torch_cpu"])
    return engine, manifest
