"""Whether the nodes of a cluster have room for the engines and learner ranks that a run counts on.

Nodes that an autoscaler would add later are not seen: a fleet that waits for them has ``actors: 0``
and ``max_actors``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.placement import job_address
from cluster.resource_plan import where_of
from safeladder.config import Config, EngineFleet
from safeladder.errors import ConfigError, EnvironmentUnfitError

if TYPE_CHECKING:
    from cluster.remote import Node

ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Equal actors, each of which needs one node."""

    key: str
    """As a message names it."""
    actors: int
    resources: Mapping[str, float]
    """Of each actor."""
    accelerator_type: str | None = None
    labels: Mapping[str, str]
    where: str = ""


def check_room(config: Config) -> None:
    """Refuse what this machine, or the cluster that the run goes to, does not have.

    Raises ``ConfigError`` or ``EnvironmentUnfitError``.
    """
    demands = demands_of(config)
    wants_place = any(d.accelerator_type or d.labels or "GPU" in d.resources for d in demands)
    has_own = any(fleet.resources for fleet in config.engine_fleets.values())
    if not wants_place and not has_own:
        return
    address = config.placement.address or job_address()
    if address is None:
        check_fit(demands, [_this_machine(demands)])
    else:
        from cluster.remote import cluster_nodes

        check_fit(demands, cluster_nodes(address))


def demands_of(config: Config) -> list[Demand]:
    """What the run counts on, the most demanding first."""
    learner = {"GPU": config.learner.num_gpus, "CPU": config.learner.num_cpus}
    fleets = config.engine_fleets.values() if config.generates else ()
    demands = [_engine_demand(fleet) for fleet in fleets]
    demands.append(
        Demand(key="learner", actors=config.learner.ranks, resources=_some(learner), labels={})
    )
    if config.reference.enabled and config.stage == "rl":
        wanted = {"GPU": config.reference.num_gpus, "CPU": config.reference.num_cpus}
        actors = config.reference.actors
        demands.append(
            Demand(key="reference", actors=actors, resources=_some(wanted), labels={})
        )  # fmt: skip
    return sorted(
        demands,
        key=lambda d: (-bool(d.accelerator_type or d.labels), -d.resources.get("GPU", 0)),
    )


def check_fit(demands: Sequence[Demand], nodes: Sequence[Node]) -> None:
    """Put every actor on the first node that has room. Raises ``ConfigError`` for a type of
    accelerator that no node has, ``EnvironmentUnfitError`` for too little room."""
    free = [Counter(node.resources) for node in nodes]
    types = {name.removeprefix(ACCELERATOR) for f in free for name in f if ACCELERATOR in name}
    for demand in demands:
        kind = demand.accelerator_type
        if demand.actors and kind is not None and kind not in types:
            have = f"it has {', '.join(sorted(types))}" if types else "it has no accelerator"
            raise ConfigError(
                f"{demand.key}.accelerator_type: no node of the cluster has {kind!r}; {have}"
            )
        for placed in range(demand.actors):
            room = next((f for f, n in zip(free, nodes, strict=True) if _fits(demand, f, n)), None)
            if room is None:
                needs = ", ".join(f"{amount:g} {name}" for name, amount in demand.resources.items())
                where = f" ({demand.where})" if demand.where else ""
                raise EnvironmentUnfitError(
                    f"{demand.key}: the cluster has room for {placed} of {demand.actors} actors "
                    f"of {needs}{where}; lower {demand.key}.{_count_key(demand.key)}, or add nodes"
                )
            room.subtract(demand.resources)


def accelerator_type(device: str) -> str | None:
    """Ray's name of the type of an NVIDIA GPU: H100 for ``NVIDIA H100 80GB HBM3``."""
    found = re.match(r"\w+\s+([A-Z0-9]+)", device)
    return found[1] if found else None


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one that a Ray label selector asks for: a value, ``!``
    before it, ``in(a,b)`` or ``!in(a,b)``."""
    return all(_holds(wanted, labels.get(label)) for label, wanted in selector.items())


def _holds(wanted: str, value: str | None) -> bool:
    plain = wanted.removeprefix("!")
    options = re.fullmatch(r"in\((.*)\)", plain)
    allowed = [o.strip() for o in options[1].split(",")] if options else [plain]
    return (value in allowed) != wanted.startswith("!")


def _fits(demand: Demand, free: Mapping[str, float], node: Node) -> bool:
    kind = demand.accelerator_type
    return (
        (kind is None or f"{ACCELERATOR}{kind}" in node.resources)
        and matches(demand.labels, node.labels)
        and all(free.get(name, 0) >= amount for name, amount in demand.resources.items())
    )


def _engine_demand(fleet: EngineFleet) -> Demand:
    wanted = {"GPU": fleet.rollout.num_gpus, "CPU": fleet.rollout.num_cpus, **fleet.resources}
    return Demand(
        key=fleet.key,
        actors=fleet.actors,
        resources=_some(wanted),
        accelerator_type=fleet.accelerator_type,
        labels=fleet.labels,
        where=where_of(fleet),
    )


def _some(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if amount}


def _count_key(key: str) -> str:
    return "ranks" if key == "learner" else "actors"


def _this_machine(demands: Collection[Demand]) -> Node:
    """As a local Ray would see it; its logical cores are as many as the run asks for."""
    import torch

    from cluster.remote import Node

    cores = sum(d.actors * d.resources.get("CPU", 0) for d in demands)
    resources: dict[str, float] = {"CPU": cores, "GPU": torch.cuda.device_count()}
    if resources["GPU"] and (kind := accelerator_type(torch.cuda.get_device_name())):
        resources[f"{ACCELERATOR}{kind}"] = 1.0
    return Node(resources, {})
