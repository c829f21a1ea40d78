"""``fleets``: rollout engines of several kinds, such as one fleet for each type of GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from safeladder.config_section import (
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from safeladder.rollout_config import RolloutConfig, VllmConfig


class FleetConfig(Section):
    """Equal rollout engines: how many, where, and what differs from ``rollout``."""

    actors: NonNegativeInt = 1
    """Engines that the run counts on: ``check`` refuses a cluster without room for them."""
    max_actors: PositiveInt | None = None
    """Further engines join as soon as the cluster has room, up to so many in all; null for none."""
    num_gpus: NonNegativeFloat | None = None
    """GPUs reserved for each engine, on one node; null takes ``rollout.num_gpus``."""
    num_cpus: NonNegativeFloat | None = None
    """Cores reserved for each engine; null takes ``rollout.num_cpus``."""
    accelerator_type: str | None = None
    """Ray's name of the GPU that an engine needs, such as H100, L40S or A100-80G."""
    labels: dict[str, str] = Field(default={})
    """Ray label selector of the node: label → value, or an expression such as ``in(a,b)``."""
    resources: dict[Name, PositiveFloat] = Field(default={})
    """Custom Ray resources that each engine takes."""
    cores: tuple[NonNegativeInt, ...] | None = None
    """CPU cores to pin to; null takes ``placement.rollout_cores``."""
    engine: Literal["vllm", "transformers"] | None = None
    """Null takes ``rollout.engine``."""
    max_concurrent_groups: PositiveInt | None = None
    """Null takes ``rollout.max_concurrent_groups``."""
    vllm: dict[str, Any] = Field(default={})
    """Keys of ``rollout.vllm`` that are different here."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.most_actors < max(self.actors, 1):
            raise ValueError(
                f"max_actors is {self.most_actors}, below actors: {self.actors}; a fleet has at "
                "least one engine in the end"
            )
        return self

    @property
    def most_actors(self) -> int:
        """``max_actors``, or ``actors`` if that is null."""
        return self.actors if self.max_actors is None else self.max_actors


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFleet:
    """One fleet with everything that ``fleets`` leaves to ``rollout`` filled in."""

    name: str
    """Of its actors, which are ``<name>-0``, ``<name>-1``, …: ``rollout`` or ``rollout-<key>``."""
    key: str
    """As a message names it: ``rollout`` or ``fleets.<key>``."""
    rollout: RolloutConfig
    """As its engines see it."""
    actors: int
    most_actors: int
    accelerator_type: str | None = None
    labels: Mapping[str, str]
    resources: Mapping[str, float]
    cores: tuple[int, ...] | None = None


def fleet_of(engine: str) -> str:
    """Name of the fleet of an actor: ``rollout-h100`` for ``rollout-h100-3``."""
    return engine.rpartition("-")[0]


def engine_fleets(
    fleets: Mapping[str, FleetConfig], rollout: RolloutConfig
) -> dict[str, EngineFleet]:
    """Name → fleet: those of ``fleets``, or the one of ``rollout.actors`` if there are none.

    Raises ``ValueError`` for an override that is none, or for GPUs that do not fit together.
    """
    if not fleets:
        single = EngineFleet(
            name="rollout",
            key="rollout",
            rollout=rollout,
            actors=rollout.actors,
            most_actors=rollout.actors,
            labels={},
            resources={},
        )
        return {single.name: _sound(single)}
    if rollout.actors != 1:
        raise ValueError("rollout.actors and fleets both say how many engines there are; keep one")
    resolved = (_resolve(key, fleet, rollout) for key, fleet in fleets.items())
    return {fleet.name: fleet for fleet in map(_sound, resolved)}


def _resolve(key: str, fleet: FleetConfig, rollout: RolloutConfig) -> EngineFleet:
    own = ("num_gpus", "num_cpus", "engine", "max_concurrent_groups")
    changes = {name: value for name in own if (value := getattr(fleet, name)) is not None}
    try:
        vllm = VllmConfig.model_validate({**rollout.vllm.model_dump(), **fleet.vllm})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("fleets", key, "vllm", *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}") from None
    return EngineFleet(
        name=f"rollout-{key}",
        key=f"fleets.{key}",
        rollout=rollout.model_copy(update={**changes, "vllm": vllm, "actors": 1}),
        actors=fleet.actors,
        most_actors=fleet.most_actors,
        accelerator_type=fleet.accelerator_type,
        labels=fleet.labels,
        resources=fleet.resources,
        cores=fleet.cores,
    )


def _sound(fleet: EngineFleet) -> EngineFleet:
    gpus, parts = fleet.rollout.num_gpus, fleet.rollout.vllm.tensor_parallel_size
    if fleet.rollout.engine == "vllm" and gpus and parts > max(gpus, 1):
        raise ValueError(
            f"{fleet.key}: an engine with vllm.tensor_parallel_size: {parts} needs as many GPUs, "
            f"not num_gpus: {gpus:g}"
        )
    if fleet.accelerator_type is not None and not gpus:
        raise ValueError(f"{fleet.key}: accelerator_type without num_gpus; give it num_gpus")
    return fleet
