"""All engines of a simulated run: they come up, generate, load weights over their links, and die.

Owns the engines and when each of them must be looked at. Knows the timetable and the events that
leave it; knows nothing of verifiers, learner or coordinator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.modelled_engine import ModelledEngine, Work
from cluster.protocol import (
    ROLLOUT,
    ActorJoined,
    ActorLost,
    EngineServing,
    Event,
    GroupGenerated,
    GroupInterrupted,
    InterruptLease,
    LoadWeights,
)
from cluster.run_model import EngineModel, RunModel
from cluster.timetable import StepDone, Timetable
from safeladder.engine_profile import EngineLoad
from safeladder.partials import PartialHeader
from safeladder.records import GroupHeader, Lease


class FleetEngine(ModelledEngine):
    """With its place in the fleet."""

    def __init__(self, name: str, model: EngineModel, is_slow: bool, now_s: float) -> None:
        super().__init__(name, model.curve, model.max_sequences, now_s)
        self.model = model
        self.is_slow = is_slow
        self.is_alive = True
        self.wakes_at_s = math.inf


@dataclass(frozen=True, slots=True)
class Wakes:
    """One of its sequences ends."""

    engine: FleetEngine


@dataclass(frozen=True, slots=True)
class Arrives:
    """Weights have come over an engine's link."""

    engine: FleetEngine
    version: int


@dataclass(frozen=True, slots=True)
class Serves:
    """An engine goes on with new weights."""

    engine: FleetEngine
    version: int


@dataclass(frozen=True, slots=True)
class Dies:
    """An engine is gone, with what it held."""

    engine: FleetEngine


@dataclass(frozen=True, slots=True)
class Joins:
    """A dead engine's replacement is up."""

    model: EngineModel
    is_slow: bool


FleetHappening = Wakes | Arrives | Serves | Dies | Joins
Happening = Event | StepDone | FleetHappening


class ModelledFleet:
    """``tell`` takes the events that happen at once; the others are put into the timetable."""

    def __init__(
        self,
        model: RunModel,
        max_groups: int | None,
        rng: random.Random,
        timetable: Timetable[Happening],
        tell: Callable[[Event], None],
    ) -> None:
        self._model = model
        self._max_groups = max_groups
        self._rng = rng
        self._timetable = timetable
        self._tell = tell
        self._engines: dict[str, FleetEngine] = {}
        self._parts: dict[str, tuple[Work, list[int]]] = {}
        """Payload → an interrupted lease, which started minus its seconds ago, and what is left of
        each sequence."""
        self._num_named = 0
        self._decoded_s = 0.0
        """By engines that are gone."""
        self.num_lost = 0
        """Groups that died with an engine."""

    @property
    def size(self) -> int:
        """Engines, dead ones that are being replaced included."""
        return sum(model.count for model in self._model.engines)

    @property
    def decoding_s(self) -> float:
        """Time in which an engine decoded, of all engines together until now."""
        for engine in self._engines.values():
            self._look_at(engine)
        return self._decoded_s + sum(engine.busy_s for engine in self._engines.values())

    def start(self) -> None:
        """All engines come up, some of them behind slow links."""
        for model in self._model.engines:
            for _ in range(model.count):
                self._join(model, self._rng.random() < self._model.faults.slow_link_share)

    def generate(self, name: str, lease: Lease, fence: int) -> None:
        """Take a lease, unless the engine is gone."""
        engine = self._engines.get(name)
        if engine is None:
            return
        self._look_at(engine)
        if lease.begun is not None:
            work, left = self._parts.pop(lease.begun)
            started_s = work.started_s + self._timetable.now_s
            engine.take(replace(work, attempt=lease.attempt, started_s=started_s), left)
        else:
            draw = self._model.lengths.draw
            lengths = [draw(self._rng) for _ in range(lease.sampling.num_samples)]
            engine.begin(lease.key, lease.attempt, fence, lengths)
        self._schedule(engine)

    def interrupt(self, command: InterruptLease) -> None:
        """Stop a lease; what is made of it can go on anywhere. Reading prompt and tokens again
        takes no time here."""
        engine = self._engines.get(command.engine)
        if engine is None:
            return
        self._look_at(engine)
        stopped = engine.stop(command.key, command.attempt)
        if stopped is None:
            return
        work, left = stopped
        seconds = self._timetable.now_s - work.started_s
        num_tokens = sum(work.lengths) - sum(left)
        payload = f"part of {work.key} attempt {work.attempt}" if num_tokens else None
        if payload is not None:
            self._parts[payload] = replace(work, started_s=-seconds), left
        header = PartialHeader(
            key=work.key,
            attempt=work.attempt,
            fence=work.fence,
            engine=engine.name,
            cause="asked",
            num_tokens=num_tokens,
            min_version=work.min_version if num_tokens else None,
            generate_s=seconds,
        )
        self._timetable.add(0.0, GroupInterrupted(header, payload))
        self._schedule(engine)

    def load(self, command: LoadWeights) -> None:
        """Fetch a version over the engine's link; it decodes meanwhile."""
        engine = self._engines.get(command.engine)
        if engine is not None:
            slowness = self._model.faults.slow_link_factor if engine.is_slow else 1.0
            seconds = self._model.weight_bytes / engine.model.link_bytes_per_s * slowness
            self._timetable.add(seconds, Arrives(engine, command.version))

    def happen(self, happening: FleetHappening) -> None:
        """What was put into the timetable is due."""
        if isinstance(happening, Joins):
            self._join(happening.model, happening.is_slow)
            return
        engine = happening.engine
        if not engine.is_alive:
            return
        match happening:
            case Wakes():
                self._look_at(engine)
            case Arrives(version=version):
                self._look_at(engine)
                engine.served = version
                engine.pause(engine.model.load_pause_s)
                self._schedule(engine)
                self._timetable.add(engine.model.load_pause_s, Serves(engine, version))
            case Serves(version=version):
                self._tell(EngineServing(engine.name, version))
            case Dies():
                self._die(engine)

    def _join(self, model: EngineModel, is_slow: bool) -> None:
        self._num_named += 1
        name = f"{model.name}-{self._num_named}"
        engine = FleetEngine(name, model, is_slow, self._timetable.now_s)
        self._engines[name] = engine
        self._tell(ActorJoined(ROLLOUT, name, self._max_groups, model.profile))
        self._tell(EngineServing(name, 0))
        if math.isfinite(self._model.faults.engine_mtbf_s):
            life_s = self._rng.expovariate(1 / self._model.faults.engine_mtbf_s)
            self._timetable.add(life_s, Dies(engine))

    def _die(self, engine: FleetEngine) -> None:
        self._look_at(engine)
        engine.is_alive = False
        del self._engines[engine.name]
        self._decoded_s += engine.busy_s
        self.num_lost += engine.num_groups
        self._tell(ActorLost(ROLLOUT, engine.name))
        self._timetable.add(self._model.faults.restart_s, Joins(engine.model, engine.is_slow))

    def _look_at(self, engine: FleetEngine) -> None:
        """Bring an engine up to now; what it has finished is delivered at once."""
        for work in engine.advance(self._timetable.now_s):
            self._timetable.add(0.0, GroupGenerated(self._header(engine, work), "group"))
        self._schedule(engine)

    def _schedule(self, engine: FleetEngine) -> None:
        """Wake it when its next sequence ends, unless it is woken before that anyhow."""
        if engine.wakes_at_s <= self._timetable.now_s:
            engine.wakes_at_s = math.inf
        end_s = engine.next_end_s()
        if end_s < engine.wakes_at_s:
            engine.wakes_at_s = end_s
            self._timetable.add(end_s - self._timetable.now_s, Wakes(engine))

    def _header(self, engine: FleetEngine, work: Work) -> GroupHeader:
        return GroupHeader(
            key=work.key,
            attempt=work.attempt,
            fence=work.fence,
            engine=engine.name,
            lengths=work.lengths,
            min_version=work.min_version,
            max_version=engine.served,
            sha256="",
            generate_s=self._timetable.now_s - work.started_s,
            load=EngineLoad(
                kv_share=min(1.0, engine.tokens_held / engine.model.kv_tokens),
                running=engine.num_running,
                waiting=engine.num_waiting,
                preemptions=0,
            ),
        )
