"""The only door to Ray's core: start, spawn, put, get, kill.

A role is a plain class; ``RoleHost`` is the Ray actor around it. Whatever a role raises comes back
as a ``RoleFailure``: Ray's own errors then mean one thing only, that the process is gone.
"""

from __future__ import annotations

import logging
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
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
    arm_commit_points,
    child_environment,
    job_address,
    local_cpus,
    mark_children,
    pin,
)
from cluster.reaper import reaper
from safeladder.config import Config
from safeladder.errors import EnvironmentUnfitError, PreemptedError, SafeladderError
from safeladder.ports import PeerFailedError
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload

log = logging.getLogger(__name__)

LOCAL_TRIES = 3
"""Starts of a local Ray before the run gives up."""
SLOW_START = "timed out during startup"
"""What Ray says when its own processes took too long."""

BuildRole = Callable[..., Any]
"""Builds a role inside its own process; importable by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFailure:
    """An exception that a role raised, as data."""

    kind: str
    """Class name of the exception."""
    message: str
    exit_code: int
    """The code of our own errors, 1 for all others."""
    detail: str
    """Traceback text, for the log."""


class Pending(Enum):
    """What ``outcome`` returns while a call runs (a role may well return None)."""

    PENDING = auto()


PENDING = Pending.PENDING


class RayStore:
    """``ports.PayloadStore`` on the object store. The store actor owns what is put, so a payload
    outlives the actor that made it."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    async def put(self, value: Any) -> Any:
        """Store; the handle is wrapped, so that Ray passes it on instead of resolving it."""
        return [ray.put(value, _owner=self._owner)]

    async def get(self, handle: Any) -> Any:
        """The stored value, arrays mapped without a copy. Raises ``KeyError`` when it is lost."""
        try:
            return await handle[0]
        except ray.exceptions.RayError as error:
            raise KeyError(f"payload is gone: {type(error).__name__}") from error


class RayPeer:
    """``ports.Peer``: another role's actor; travels inside arguments."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def of_this_actor(cls) -> RayPeer:
        """The role that asks."""
        return cls(ray.get_runtime_context().current_actor)

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """See ``ports.Peer.call``."""
        try:
            value = await self._handle.call.remote(method, dict(arguments))
        except ray.exceptions.RayError as error:
            raise PeerFailedError(f"{method}: {type(error).__name__}") from error
        if isinstance(value, RoleFailure):
            raise PeerFailedError(f"{method}: {value.kind}: {value.message}")
        return value


class StoreOwner:
    """The role of the store actor: it owns objects and does nothing else."""

    async def start(self) -> bool:
        """Answer once."""
        return True


class RoleHost:
    """One Ray actor around one role.

    It has the ``ping`` that RLlib's actor manager asks for, but not its ``FaultAwareApply``: that
    mix-in serves calls by function, which we never make, and would load torch into every verifier.
    """

    def __init__(self, build: BuildRole, arguments: Mapping[str, Any], owner: Any, cores: Any):
        pin(cores)
        arm_commit_points()
        store = RayStore(owner) if owner is not None else None
        self._role = build(**arguments) if store is None else build(store=store, **arguments)

    async def ping(self) -> str:
        """Health check."""
        return "pong"

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Run one coroutine method of the role."""
        try:
            return await getattr(self._role, method)(**arguments)
        except Exception as error:  # noqa: BLE001 - turned into data: only a dead process may look dead
            return RoleFailure(
                kind=type(error).__name__,
                message=str(error),
                exit_code=error.exit_code if isinstance(error, SafeladderError) else 1,
                detail=traceback.format_exc(),
            )


def build_store_owner() -> StoreOwner:
    """Build function of the store actor."""
    return StoreOwner()


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return RoleFailure(kind="ActorLost", message=reason, exit_code=1, detail=str(error))


def fetch(handle: Any, timeout_s: float) -> Any:
    """A stored payload, in the driver. Raises ``KeyError`` when it is lost."""
    try:
        return ray.get(handle[0], timeout=timeout_s)
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


def cluster_nodes(address: str) -> list[Node]:
    """The living machines of a Ray cluster. Raises ``EnvironmentUnfitError``."""
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise EnvironmentUnfitError(f"Ray at {address}: {error}") from error
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
                if SLOW_START not in str(error) or not tries_left:
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
        raise EnvironmentUnfitError(f"Ray at {where}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in, which just exits


class RayLink:
    """``ports.WeightLink``: asks the learner's first rank, and is called back as an actor."""

    def __init__(self, learner: RayPeer) -> None:
        self._learner = learner

    async def request(
        self, manifest: WeightManifest, payload: WeightPayload, engine: str, num_workers: int
    ) -> None:
        """See ``ports.WeightLink.request``."""
        arguments = {
            "manifest": manifest,
            "payload": payload,
            "engine": engine,
            "num_workers": num_workers,
            "control": RayPeer.of_this_actor(),
        }
        await self._learner.call("send_weights", arguments)
