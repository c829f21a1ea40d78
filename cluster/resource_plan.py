"""What a run will take: actors, cores, GPUs and memory of each role, estimated before it starts.

Memory counts weights, optimizer state, caches and a runtime per process; activations are left out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from cluster.model_folder import ModelFolder
from safeladder.config import Config, EngineFleet

RUNTIME_BYTES = {"rollout": 1.2e9, "reference": 0.8e9, "learner": 1.2e9, "verifier": 0.15e9}
"""Roughly what a process of that role holds before any weights: interpreter and libraries."""
HEAD_BYTES = 1.0e9
"""Ray's own processes, the driver, the monitor and the store actor."""


@dataclass(frozen=True, slots=True)
class RolePlan:
    """One line of the plan."""

    role: str
    actors: int
    num_cpus: float
    """Of each actor."""
    num_gpus: float
    """Of each actor."""
    num_bytes: float
    """Of each actor: on its GPU if it has one, else in main memory."""
    where: str = ""
    """What it asks of its node, beyond cores and GPUs."""


def resource_plan(config: Config, model: ModelFolder) -> list[RolePlan]:
    """One line for each role that the run starts."""
    weights = model.num_parameters * (4 if config.model.dtype == "float32" else 2)
    reference, learner = config.reference, config.learner
    head_bytes = HEAD_BYTES + config.placement.object_store_gib * 2**30
    held = {
        "learner": _learner_bytes(config, model),
        "reference": weights,
    }
    sections = [
        ("learner", learner.ranks, learner.num_cpus, learner.num_gpus),
        ("reference", reference.actors, reference.num_cpus, reference.num_gpus),
    ]
    return [
        *(
            _engine_plan(fleet, weights)
            for fleet in config.engine_fleets.values()
            if config.generates
        ),
        *(
            RolePlan(role, actors, cpus, gpus, RUNTIME_BYTES[role] + held[role])
            for role, actors, cpus, gpus in sections
            if role != "reference" or (reference.enabled and config.stage == "rl")
        ),
        *(
            RolePlan(f"verifier {name}", settings.actors, 0, 0, RUNTIME_BYTES["verifier"])
            for name, settings in config.principles.items()
            if config.generates
        ),
        RolePlan("driver, monitor, store", 1, 0, 0, head_bytes),
    ]


def _engine_plan(fleet: EngineFleet, weights: float) -> RolePlan:
    rollout = fleet.rollout
    cache = rollout.vllm.cpu_kv_cache_gib * 2**30 if rollout.engine == "vllm" else 0
    num_bytes = RUNTIME_BYTES["rollout"] + weights + cache
    return RolePlan(
        fleet.name,
        fleet.most_actors,
        rollout.num_cpus,
        rollout.num_gpus,
        num_bytes,
        where_of(fleet),
    )


def where_of(fleet: EngineFleet) -> str:
    """What the engines of a fleet ask of their node, in words; empty if nothing."""
    parts = [fleet.accelerator_type or ""]
    parts += [f"{label}={value}" for label, value in fleet.labels.items()]
    parts += [f"{amount:g} {name}" for name, amount in fleet.resources.items()]
    return ", ".join(filter(None, parts))


def host_memory_bytes() -> int:
    """Main memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main_memory_bytes(plan: list[RolePlan]) -> float:
    """Main memory of all actors that have no GPU."""
    return sum(line.actors * line.num_bytes for line in plan if line.num_gpus == 0)


def trained_parameters(config: Config, model: ModelFolder) -> int:
    """Parameters that have a gradient and an optimizer state."""
    learner = config.learner
    if learner.lora is None:
        return model.num_trainable(learner.train_last_layers)
    target = None if learner.lora.target == "all-linear" else learner.lora.target
    return model.num_adapted(learner.lora.rank, target, learner.train_last_layers)


def _learner_bytes(config: Config, model: ModelFolder) -> float:
    """Of one rank. ZeRO 1 splits optimizer state over the ranks, 2 the gradients too, 3 all but a
    vision tower."""
    learner = config.learner
    trained = trained_parameters(config, model)
    width = 4 if config.model.dtype == "float32" else 2
    masters = 0 if width == 4 else 4 * trained
    shared = model.num_parameters - model.num_frozen
    parts = (width * shared, width * trained, masters + 8 * trained)
    split_from = (3, 2, 1)
    return width * model.num_frozen + sum(
        part / (learner.ranks if learner.zero_stage >= stage else 1)
        for part, stage in zip(parts, split_from, strict=True)
    )
