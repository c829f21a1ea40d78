"""Where a role runs: environment, cores, resources. No other module sets variables
of the driver or its children.

Two settings decide whether roles can share a small machine: one compute thread in every actor, and
actors pinned to cores, so that a spinning engine cannot push the learner aside.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.reaper import VARIABLE
from safeladder.commit_points import LOG_VARIABLE as POINT_LOG
from safeladder.commit_points import VARIABLE as POINT
from safeladder.commit_points import arm
from safeladder.config import Config, EngineFleet

REPOSITORY = Path(__file__).resolve().parent.parent
"""Folder that holds the rooms; children find them through ``PYTHONPATH``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What one actor asks of the cluster, and how it behaves there."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    cores: tuple[int, ...] = ()
    """Cores to pin to; empty leaves it to the system."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the actor's process and its children."""
    accelerator_type: str | None = None
    """Ray's name of the GPU."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label selector of the node."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom Ray resources."""
    is_bundle: bool = False
    """Whether all that it asks for is reserved as one placement group on one node, so that the
    processes of an engine of several GPUs are sure to find them."""


def engine_placement(fleet: EngineFleet, config: Config) -> Placement:
    """The placement of one rollout engine of ``fleet``."""
    cores = config.placement.rollout_cores if fleet.cores is None else fleet.cores
    return Placement(
        num_cpus=fleet.rollout.num_cpus,
        num_gpus=fleet.rollout.num_gpus,
        cores=cores,
        env=_environment(config),
        accelerator_type=fleet.accelerator_type,
        labels=fleet.labels,
        resources=fleet.resources,
        is_bundle=fleet.rollout.num_gpus > 1,
    )


def placement_of(fleet: str, config: Config) -> Placement:
    """The placement of one actor of ``fleet``: verifier, reference, learner, monitor, store."""
    env = _environment(config)
    cores = config.placement.learner_cores if fleet == "learner" else config.placement.rollout_cores
    if fleet == "reference":
        return Placement(
            num_cpus=config.reference.num_cpus,
            num_gpus=config.reference.num_gpus,
            cores=cores,
            env=env,
        )
    if fleet == "learner":
        return Placement(
            num_cpus=config.learner.num_cpus, num_gpus=config.learner.num_gpus, cores=cores, env=env
        )
    return Placement(cores=cores, env=env)


def _environment(config: Config) -> dict[str, str]:
    return _of_threads(config.placement.threads_per_actor)


def _of_threads(threads: int) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def local_cpus(config: Config) -> int:
    """Logical CPUs a local Ray must claim so that every actor of the run fits: on a small machine
    roles share cores, and the shares are settled by pinning, not by Ray."""
    wanted = (
        sum(f.most_actors * f.rollout.num_cpus for f in config.engine_fleets.values())
        + config.learner.ranks * config.learner.num_cpus
        + (config.reference.actors * config.reference.num_cpus if config.reference.enabled else 0)
    )
    return max(os.cpu_count() or 1, int(wanted + 1))


def pin(cores: Sequence[int]) -> None:
    """Pin this process, and the children it will have, to those of ``cores`` that exist."""
    available = os.sched_getaffinity(0)
    wanted = available & set(cores)
    if wanted:
        os.sched_setaffinity(0, wanted)


def prepare_ray(config: Config) -> None:
    """Settings that a local Ray reads from the environment **as it is imported**: call this first.

    Children of a killed actor end with it, usage is not reported, and a local control plane answers
    only to this process tree's token. What the caller's environment already says stays, and a
    cluster that is already there is not touched.
    """
    if config.placement.address is not None or job_address() is not None:
        return
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def behave_as(fleet: str, config: Config) -> None:
    """Give this process the environment that an actor of ``fleet`` has. Libraries read it **as they
    are imported**: call this first."""
    os.environ.update(placement_of(fleet, config).env)


def compute_on(threads: int) -> None:
    """The same for a process that computes alone, without a run: call this first, too."""
    os.environ.update(_of_threads(threads))


def mark_children() -> str:
    """Give the processes that this one will start a mark by which ``reaper`` knows them."""
    os.environ[VARIABLE] = mark = secrets.token_hex(16)
    return mark


def arm_commit_points() -> None:
    """Let this process die at the commit point that its environment names, if it names one."""
    arm(os.environ.get(POINT), os.environ.get(POINT_LOG))


def job_address() -> str | None:
    """Address of the cluster that submitted this process as a job, if one did."""
    return os.environ.get("RAY_ADDRESS") or None


def child_environment(**extra: str) -> dict[str, str]:
    """Environment for a child process of the driver: ours, the rooms on its path, and ``extra``."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        **extra,
    }
