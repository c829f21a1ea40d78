"""What a modelled run is made of: engines, learner, verifiers and their faults, as numbers.

Plain data for ``performance`` (virtual time) and ``split_plan`` (closed form). Every number is one
that a profile, an earlier run or a data sheet gives; nothing here decides or draws anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.length_distribution import Lengths
from cluster.modelled_engine import DecodeCurve
from safeladder.engine_profile import EngineProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """Equal engines of one fleet."""

    name: str
    count: int
    curve: DecodeCurve
    max_sequences: int
    """Decoded together; more wait inside the engine."""
    kv_tokens: int
    """Tokens that its cache holds."""
    gpus: int = 1
    """Of one engine."""
    link_bytes_per_s: float = math.inf
    """Weights, from the store into one engine. It decodes meanwhile."""
    load_pause_s: float = 0.0
    """It stands still so long for each new version."""

    @property
    def profile(self) -> EngineProfile:
        """As the engine measures itself."""
        sizes = [2**power for power in range(self.max_sequences.bit_length())]
        return EngineProfile(
            kv_tokens=self.kv_tokens,
            max_sequences=self.max_sequences,
            speeds=tuple((size, self.curve.tokens_per_s(size)) for size in sizes),
            link_bytes_per_s=self.link_bytes_per_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerModel:
    """All ranks as one."""

    gpus: int
    seconds_per_token: float
    """Of a step, by sampled tokens of its batch, on all these GPUs."""
    fixed_s: float = 0.0
    """Of a step, whatever its size."""
    publish_s: float = 0.0
    """To gather a version and put it into the store; the next step waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """Actors that answer calls, each after a log-normal time."""

    actors: int
    calls_per_actor: int
    median_s: float
    sigma: float = 0.5
    """Of the logarithm: at 0.5 the 99th percentile is 3.2 times the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultModel:
    """What goes wrong, at a rate. Nothing does by default."""

    engine_mtbf_s: float = math.inf
    """Mean time between two deaths of one engine."""
    restart_s: float = 120.0
    """Until a dead engine's replacement is up, weights not counted."""
    slow_link_share: float = 0.0
    """Share of engines behind a slow link, in [0, 1]."""
    slow_link_factor: float = 10.0
    """Times as slow."""
    lost_call_share: float = 0.0
    """Share of verifier calls that are lost and asked again, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunModel:
    """A run to be simulated or planned."""

    engines: tuple[EngineModel, ...]
    lengths: Lengths
    """Of responses."""
    learner: LearnerModel
    verifiers: LatencyModel
    """Of each principle: one call judges a group."""
    references: LatencyModel | None = None
    weight_bytes: float = 0.0
    """Of a version, as it travels."""
    faults: FaultModel = FaultModel()
