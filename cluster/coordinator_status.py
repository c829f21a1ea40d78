"""What the coordinator tells of itself, for the terminal, the metrics and ``status``.

Numbers and sentences only; nothing here decides anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.engines import Engine
from cluster.groups import GroupTable
from cluster.learner_state import LearnerState
from cluster.score_desk import ScoreDesk
from cluster.transitions import GroupState
from safeladder.config import Config
from safeladder.engine_profile import EngineLoad, EngineProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """One engine of the rollout fleet."""

    name: str
    served_version: int | None
    """None until it has said so."""
    leases: int
    capacity: int
    loading: int | None
    """Version being loaded."""
    is_leaving: bool
    """It gets no more leases."""
    load: EngineLoad | None
    """Its newest report."""
    profile: EngineProfile | None


@dataclass(frozen=True, slots=True)
class Glance:
    """What everybody does at this moment, quick enough to be asked for in every turn."""

    is_step_ordered: bool
    engines: Mapping[str, int]
    """``busy``, ``loading``, ``idle`` or ``starting`` → engines."""
    fleets: Mapping[str, tuple[int, int]]
    """Verifier or reference fleet → calls that are out, and calls that wait for a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """One fleet of verifiers or references."""

    name: str
    actors: int
    calls_waiting: int
    calls_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStatus:
    """One look at a run."""

    version: int
    """Of the learner."""
    published_version: int
    running_step: int | None
    paused_by: str | None
    counts: Mapping[str, int]
    """State → groups; trained and dropped ones since the start of the run."""
    dropped_by_reason: Mapping[str, int]
    trained_by_staleness: Mapping[int, int]
    """Staleness → groups trained at it since the start of the run."""
    late_results: int
    """Answers that came too late, twice, or for an older attempt."""
    failed_attempts: int
    """Attempts given up since this driver started: engine lost, deadline, payload lost."""
    continued: int
    """Leases that went on from an interrupted one, since this driver started."""
    begun_anew: int
    """Interrupted groups that would have been too old when trained, and so began anew."""
    engines: tuple[EngineStatus, ...]
    fleets: tuple[FleetStatus, ...]
    waits: tuple[str, ...]
    """Who waits for whom, one sentence each."""

    @property
    def staleness_max(self) -> int:
        """Largest staleness trained so far; 0 before the first step."""
        return max(self.trained_by_staleness, default=0)

    @property
    def staleness_mean(self) -> float:
        """Mean staleness over trained groups; 0 before the first step."""
        total = sum(self.trained_by_staleness.values())
        weighted = sum(age * count for age, count in self.trained_by_staleness.items())
        return weighted / total if total else 0.0


def read_glance(engines: Sequence[Engine], scores: ScoreDesk, learner: LearnerState) -> Glance:
    """Look at the coordinator's parts."""
    return Glance(
        learner.running_step is not None,
        Counter(map(_activity, engines)),
        {name: (queue.num_out, queue.num_waiting) for name, queue in scores.queues.items()},
    )


def _activity(engine: Engine) -> str:
    if engine.served is None:
        return "starting"
    if engine.loading is not None:
        return "loading"
    return "busy" if engine.leases else "idle"


def read_status(
    config: Config,
    groups: GroupTable,
    engines: Sequence[Engine],
    scores: ScoreDesk,
    learner: LearnerState,
    *,
    trained_by_staleness: Mapping[int, int],
    late_results: int,
    failed_attempts: int,
    continued: int,
    begun_anew: int,
) -> CoordinatorStatus:
    """Collect what the coordinator's parts know."""
    counts = groups.counts
    seen_engines = tuple(
        EngineStatus(
            name=engine.name,
            served_version=engine.served,
            leases=len(engine.leases),
            capacity=engine.capacity,
            loading=engine.loading,
            is_leaving=engine.is_leaving,
            load=engine.load,
            profile=engine.profile,
        )
        for engine in engines
    )
    seen_fleets = tuple(
        FleetStatus(
            name=name,
            actors=queue.num_actors,
            calls_waiting=queue.num_waiting,
            calls_out=queue.num_out,
        )
        for name, queue in scores.queues.items()
    )
    ready = counts[GroupState.SCORED] + counts[GroupState.ADMITTED]
    return CoordinatorStatus(
        version=learner.version,
        published_version=learner.published,
        running_step=learner.running_step,
        paused_by=scores.pause_reason,
        counts={state.value: counts[state] for state in GroupState},
        dropped_by_reason={reason.value: count for reason, count in groups.dropped.items()},
        trained_by_staleness=dict(trained_by_staleness),
        late_results=late_results,
        failed_attempts=failed_attempts,
        continued=continued,
        begun_anew=begun_anew,
        engines=seen_engines,
        fleets=seen_fleets,
        waits=(
            *_learner_waits(config, learner, scores.pause_reason, ready),
            *([] if seen_engines else ["generation waits for an engine"]),
            *_engine_waits(seen_engines),
            *(_fleet_wait(fleet) for fleet in seen_fleets if fleet.calls_waiting),
        ),
    )


def _learner_waits(
    config: Config, learner: LearnerState, paused_by: str | None, ready: int
) -> list[str]:
    if learner.version >= config.run.steps:
        return ["all steps are trained: the engines take the last version"]
    if paused_by is not None:
        return [f"learner waits: {paused_by}"]
    if learner.running_step is None:
        needed = config.schedule.groups_per_step
        return [f"learner waits for groups: {ready} of {needed} are scored"]
    return []


def _fleet_wait(fleet: FleetStatus) -> str:
    why = f"{fleet.calls_out} are being worked on" if fleet.actors else "no actor is up"
    return f"{fleet.calls_waiting} calls wait for {fleet.name}: {why}"


def _engine_waits(engines: Sequence[EngineStatus]) -> list[str]:
    """One sentence for each reason why engines have no group."""
    idle: defaultdict[str, list[str]] = defaultdict(list)
    for engine in engines:
        if engine.leases == 0:
            idle[_engine_wait(engine)].append(engine.name)
    return [
        f"{names[0]} {why}" if len(names) == 1 else f"{len(names)} engines: each {why}"
        for why, names in idle.items()
    ]


def _engine_wait(engine: EngineStatus) -> str:
    if engine.served_version is None:
        return "is starting"
    if engine.loading is not None:
        return f"loads version {engine.loading}"
    if engine.is_leaving:
        return "leaves"
    return f"waits for groups to be admitted at version {engine.served_version}"
