"""The driver's door to Ray's core: start, spawn, ask, fetch, kill. What runs at the other end of a
call stands in ``role_host``.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.placement import (
    REPOSITORY,
    Placement,
    child_environment,
    job_address,
    local_cpus,
    mark_children,
)
from cluster.reaper import reaper
from cluster.role_host import Answer, BuildRole, Handle, Letter, RoleFailure, RoleHost
from safeladder.config import Config
from safeladder.errors import EnvironmentUnfitError, PreemptedError

log = logging.getLogger(__name__)

LOCAL_TRIES = 3
"""Starts of a local Ray before the run gives up."""
SLOW_START = "timed out"
"""Ray says so, in several sentences, when its own processes took too long."""


class Pending(Enum):
    """What ``outcome`` returns while a call runs (a role may well return None)."""

    PENDING = auto()


PENDING = Pending.PENDING


def spawn(
    name: str,
    build: BuildRole,
    arguments: Mapping[str, Any],
    placement: Placement,
    *,
    owner: Any = None,
) -> Any:
    """Start an actor around the role that ``build`` makes; returns its handle at once.

    Its process carries ``name``: ``ps`` and the Ray dashboard show ``ray::rollout-0``.

    Ray restarts nothing by itself: a replacement is a new actor with a new name, so that a zombie
    of the old one can never be mistaken for it.
    """
    bundle = _reserve(placement) if placement.is_bundle else None
    options = {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "resources": dict(placement.resources),
        **(_where(placement) if bundle is None else _inside(bundle)),
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 1000,
        "runtime_env": {"env_vars": dict(placement.env)},
    }
    actor_class = ray.remote(type(name, (RoleHost,), {})).options(**options)
    handle = actor_class.remote(build, dict(arguments), owner, placement.cores)
    if bundle is not None:
        _BUNDLES[handle._actor_id.hex()] = bundle
    return handle


_BUNDLES: dict[str, PlacementGroup] = {}
"""Actor id → what is reserved for it, until ``kill``."""


def _where(placement: Placement) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if placement.accelerator_type is not None:
        options["accelerator_type"] = placement.accelerator_type
    if placement.labels:
        options["label_selector"] = dict(placement.labels)
    return options


def _reserve(placement: Placement) -> PlacementGroup:
    """One bundle, whole on one node; it is there once the node has room."""
    bundle = {"CPU": placement.num_cpus, "GPU": placement.num_gpus, **placement.resources}
    if placement.accelerator_type is not None:
        bundle[f"accelerator_type:{placement.accelerator_type}"] = 0.001
    return placement_group(
        [{name: amount for name, amount in bundle.items() if amount}],
        strategy="STRICT_PACK",
        bundle_label_selector=[dict(placement.labels)] if placement.labels else None,
    )


def _inside(bundle: PlacementGroup) -> dict[str, Any]:
    strategy = PlacementGroupSchedulingStrategy(
        bundle, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )
    return {"scheduling_strategy": strategy}


def submit(handle: Any, method: str, arguments: Mapping[str, Any]) -> Any:
    """Send one call to an actor outside any fleet; returns the reference to its result."""
    return handle.call.remote(method, dict(arguments))


def outcome(reference: Any, timeout_s: float) -> Any:
    """Result of a submitted call, waiting up to ``timeout_s``: ``PENDING`` while there is none, a
    ``RoleFailure`` if the role raised or its process is gone."""
    ready, _ = ray.wait([reference], timeout=timeout_s)
    if not ready:
        return PENDING
    try:
        return ray.get(ready[0])
    except ray.exceptions.RayError as error:
        line = first_line(error)
        return RoleFailure(kind="ActorLost", message=line, exit_code=1, detail=str(error))


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange on its way: references to the answers, and to the bundle of their payloads."""

    answers: Any
    bundle: Any


def exchange(handle: Any, letters: Sequence[Letter]) -> Exchange:
    """Hand an actor letters, and wait for what it has to answer."""
    return Exchange(*handle.exchange.remote(letters))


def answers(exchanges: Sequence[Exchange]) -> list[tuple[Exchange, list[Answer] | str]]:
    """The exchanges that are over, with the answers; in place of these the reason, in a line, why
    the process at the other end is gone. Never waits."""
    by_reference = {one.answers: one for one in exchanges}
    if not by_reference:
        return []
    ready, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
    return [(by_reference[reference], _open(by_reference[reference])) for reference in ready]


def _open(exchange: Exchange) -> list[Answer] | str:
    try:
        found: list[Answer] = ray.get(exchange.answers)
    except ray.exceptions.RayError as error:
        return first_line(error)
    for answer in found:
        for handle in answer.handles:
            handle.reference = exchange.bundle
    return found


def first_line(error: Any) -> str:
    """An error of Ray's, which are long, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def wait_for_any(references: Sequence[Any], timeout_s: float) -> None:
    """Return as soon as one of them is there, or after ``timeout_s``."""
    if references:
        ray.wait(list(references), timeout=timeout_s, fetch_local=False)
    else:
        time.sleep(timeout_s)


def fetch(handle: Handle, timeout_s: float) -> Any:
    """A stored payload, in the driver. Raises ``KeyError`` when it is lost."""
    try:
        return handle.payload(ray.get(handle.reference, timeout=timeout_s))
    except ray.exceptions.RayError as error:
        raise KeyError(f"payload is gone: {type(error).__name__}") from error


def node_address() -> str:
    """Address of this machine as the other nodes reach it; its host name may mean the loopback."""
    address: str = ray.util.get_node_ip_address()
    return address


def kill(handle: Any) -> None:
    """End an actor's process now, and free what was reserved for it. A process that is already gone
    is no error."""
    ray.kill(handle, no_restart=True)
    bundle = _BUNDLES.pop(handle._actor_id.hex(), None)
    if bundle is not None:
        remove_placement_group(bundle)


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine of a cluster has in all."""

    resources: Mapping[str, float]
    """``CPU``, ``GPU``, ``accelerator_type:H100``, and custom ones."""
    labels: Mapping[str, str]


def _one_line(error: Exception) -> str:
    """Where Ray tells a traceback: how it begins and what it ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return "".join(lines) or type(error).__name__
    return f"{lines[0]} … {lines[-1]} (--debug shows all)"


def cluster_nodes(address: str) -> list[Node]:
    """The living machines of a Ray cluster. Raises ``EnvironmentUnfitError``."""
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise EnvironmentUnfitError(f"Ray at {address}: {_one_line(error)}") from error
    try:
        return [
            Node(node["Resources"], node["Labels"])
            for node in ray.nodes()
            if node["Alive"] and node["Resources"]
        ]
    finally:
        ray.shutdown()


@contextmanager
def session(config: Config) -> Iterator[None]:
    """A Ray to run in: the cluster that submitted this job or ``placement.address``, else a local
    one with its own temp folder, which ends with the context."""
    address = config.placement.address or job_address()
    with ExitStack() as stack:
        if address is None:
            stack.enter_context(_local_ray(config))
        else:
            stack.callback(ray.shutdown)
            _init(address, {})
        yield


def _local_ray(config: Config) -> ExitStack:
    """Start a local Ray; the stack ends it. Ray waits 30 s for its own processes, which a machine
    that is busy with something else may outlast: then all of them are ended and others started."""
    for tries_left in reversed(range(LOCAL_TRIES)):
        temp = tempfile.mkdtemp(prefix="sl-ray-")
        with ExitStack() as stack:
            stack.enter_context(reaper(mark_children(), temp, child_environment()))
            stack.callback(ray.shutdown)
            options = {
                "num_cpus": local_cpus(config),
                "object_store_memory": int(config.placement.object_store_gib * 2**30),
                "include_dashboard": False,
                "_temp_dir": temp,
            }
            try:
                _init("local", options)
            except EnvironmentUnfitError as error:
                if SLOW_START not in str(error).lower() or not tries_left:
                    raise
                log.warning("%s; trying again", error)
            else:
                return stack.pop_all()
    raise AssertionError("the last try returns or raises")


def _init(address: str, options: Mapping[str, Any]) -> None:
    """``ray.init``. Raises ``EnvironmentUnfitError``, or ``PreemptedError`` on SIGTERM."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
            **options,
        )
    except SystemExit:
        raise PreemptedError("told to stop by SIGTERM while Ray was starting") from None
    except Exception as error:
        where = "this machine" if address == "local" else address
        raise EnvironmentUnfitError(f"Ray at {where}: {_one_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in, which just exits
