"""What this machine must have for a run: units for the dtype, GPUs, cores, memory, disk.

A run on a Ray cluster elsewhere is judged by its disk and dtype alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from cluster.model_folder import ModelFolder
from cluster.placement import job_address
from cluster.resource_plan import (
    host_memory_bytes,
    main_memory_bytes,
    resource_plan,
    trained_parameters,
)
from cluster.run_directory import require_free_disk
from safeladder.config import Config
from safeladder.errors import ConfigError, EnvironmentUnfitError

CPU_FLAGS = {"bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"})}
"""Processor flags that make a dtype usable without a GPU (x86 and Arm names)."""


def check_host(config: Config, model: ModelFolder) -> None:
    """Raise ``EnvironmentUnfitError`` or ``ConfigError`` if the run does not fit this machine."""
    check_dtype(config, processor_flags())
    check_transport(config)
    check_gpus(config)
    check_cores(config, max(os.cpu_count() or 1, *(core + 1 for core in os.sched_getaffinity(0))))
    check_memory(config, model, host_memory_bytes())
    require_free_disk(config.run.directory, required_disk_bytes(config, model))


def check_dtype(config: Config, flags: Collection[str]) -> None:
    """Refuse a half-precision dtype for a role without GPU on a processor that lacks it."""
    dtype = config.model.dtype
    without_gpu = [name for name, gpus in _gpus(config).items() if gpus == 0]
    if dtype in CPU_FLAGS and without_gpu and not CPU_FLAGS[dtype] & set(flags):
        raise EnvironmentUnfitError(
            f"model.dtype {dtype}: {', '.join(without_gpu)} would run on the processor, which has "
            f"no {dtype} units; set model.dtype to float32, or give "
            f"{' and '.join(f'{name}.num_gpus' for name in without_gpu)}"
        )


def check_gpus(config: Config) -> None:
    """Refuse GPUs that this machine lacks. A run on a Ray cluster elsewhere is not judged here."""
    wanting = [name for name, gpus in _gpus(config).items() if gpus > 0]
    if not wanting or _is_elsewhere(config):
        return
    import torch

    keys = " and ".join(f"{name}.num_gpus" for name in wanting)
    if not torch.cuda.is_available():
        raise EnvironmentUnfitError(
            f"{keys}: this machine has no GPU that PyTorch can use; set it to 0, or set "
            "placement.address to a cluster with GPUs"
        )
    if config.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
        raise EnvironmentUnfitError(
            f"model.dtype bfloat16: {torch.cuda.get_device_name()} has no bfloat16 units; set "
            "model.dtype to float32"
        )


def check_transport(config: Config) -> None:
    """Refuse a transport from GPU to GPU where one end has none, or ``ipc`` between two GPUs."""
    transport = config.weights.transport
    if transport == "object_store" or not config.generates:
        return
    otherwise = "or set weights.transport to object_store"
    without = [name for name, gpus in _gpus(config).items() if name != "reference" and not gpus]
    if without:
        keys = " and ".join(f"{name}.num_gpus" for name in without)
        raise ConfigError(f"weights.transport {transport} needs GPUs: set {keys}, {otherwise}")
    engines = config.engine_fleets.values()
    actors = config.learner.ranks + sum(
        fleet.most_actors * fleet.rollout.vllm.tensor_parallel_size for fleet in engines
    )
    shares = config.learner.num_gpus + sum(fleet.rollout.num_gpus for fleet in engines)
    if transport == "ipc" and (actors != 2 or shares > 1):
        raise ConfigError(
            "weights.transport ipc needs one learner rank and one engine that share a GPU: let "
            f"learner.num_gpus and rollout.num_gpus sum to at most 1, {otherwise}"
        )


def check_cores(config: Config, num_cores: int) -> None:
    """Refuse cores of which this machine has none. Some may be missing: a config for two cores also
    runs on one."""
    placement = config.placement
    cores = {*placement.rollout_cores, *placement.learner_cores}
    if cores and min(cores) >= num_cores and not _is_elsewhere(config):
        raise ConfigError(
            f"placement.rollout_cores and placement.learner_cores name {sorted(cores)}, but this "
            f"machine has the cores 0 to {num_cores - 1}; name some of them, or none"
        )


def check_memory(config: Config, model: ModelFolder, num_bytes: int) -> None:
    """Refuse a run whose roles together need more than the machine's whole main memory."""
    needed = main_memory_bytes(resource_plan(config, model))
    if needed > num_bytes and not _is_elsewhere(config):
        raise EnvironmentUnfitError(
            f"the run needs about {needed / 2**30:.1f} GiB of main memory, but this machine has "
            f"{num_bytes / 2**30:.1f} GiB; lower placement.object_store_gib, "
            "rollout.vllm.cpu_kv_cache_gib or the number of actors, or take a smaller model"
        )


def required_disk_bytes(config: Config, model: ModelFolder) -> int:
    """Space of all checkpoints kept and of the one being written: weights in the model's dtype,
    and 12 bytes (float32 master and the two Adam moments) for each trained parameter."""
    trained = trained_parameters(config, model)
    width = 4 if config.model.dtype == "float32" else 2
    return (config.checkpoint.keep + 1) * (width * model.num_parameters + 12 * trained)


def processor_flags() -> frozenset[str]:
    """Feature flags of the first core; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _is_elsewhere(config: Config) -> bool:
    return bool(config.placement.address or job_address())


def _gpus(config: Config) -> dict[str, float]:
    """Section → GPUs of each of its actors, for the roles that hold the model."""
    sections = {
        fleet.key: fleet.rollout.num_gpus
        for fleet in config.engine_fleets.values()
        if config.generates
    }
    sections["learner"] = config.learner.num_gpus
    if config.reference.enabled and config.stage == "rl":
        sections["reference"] = config.reference.num_gpus
    return sections
