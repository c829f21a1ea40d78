"""Models of the roles for virtual time: how long they take, how they fail, what they answer.

Owns the random choices of a simulated run, all from one ``random.Random``. Knows the events and
commands of ``protocol``; knows nothing of how the coordinator decides.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields

from cluster.calls import CallId
from cluster.panel import Panel
from cluster.protocol import (
    REFERENCE,
    ROLLOUT,
    ActorJoined,
    ActorLost,
    Command,
    EngineLeaving,
    EngineServing,
    Event,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    GroupInterrupted,
    InterruptLease,
    LoadWeights,
    PanelChanged,
    PayloadLost,
    Publish,
    ReferenceLost,
    ReferenceReady,
    Release,
    Score,
    ScoreReference,
    ScoringLost,
    StepCommitted,
    Train,
    VerdictsReady,
    WeightsPublished,
)
from cluster.simulated_stops import SimulatedStops
from cluster.timetable import Happening, StepDone, Timetable
from cluster.witness import Made, Witness
from safeladder.config import Config
from safeladder.records import (
    GenerationFailure,
    GroupHeader,
    GroupKey,
    InvalidCause,
    Lease,
    StepReport,
    TrainGroup,
    TrainOrder,
    Verdict,
    VerdictStatus,
)

SECONDS_PER_TOKEN = 0.02
MEAN_LEASE_S = 1.0
"""Roughly what a lease of a small group takes; in a longer one an engine dies more often."""
RESTART_S = 15.0
"""A dead actor's replacement is up this much later."""
CALLS_PER_ACTOR = 4
SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probability of each fault, at each occasion for it. Nothing fails by default."""

    engine_dies: float = 0.0
    """Within a lease of ``MEAN_LEASE_S``; what else it holds dies with it."""
    ghost_answers: float = 0.0
    """What a dead engine made is delivered all the same, also to the next driver."""
    generation_fails: float = 0.0
    actor_is_silent: float = 0.0
    """A lease or a call is never answered."""
    answer_is_slow: float = 0.0
    """An answer takes 50 times as long."""
    answer_is_doubled: float = 0.0
    lease_is_stopped: float = 0.0
    """At its deadline, with the tokens that it has."""
    engine_leaves: float = 0.0
    """Within a lease; it is told before, and ended later."""
    verifier_dies: float = 0.0
    verdict_is_invalid: float = 0.0
    reference_is_lost: float = 0.0
    payload_is_lost: float = 0.0
    load_fails: float = 0.0
    driver_dies: float = 0.0
    """In one turn of its loop."""
    panel_changes: float = 0.0
    """Some verifiers are swapped, at the end of a step."""

    @classmethod
    def drawn(cls, rng: random.Random, scale: float = 0.1) -> Faults:
        """A random mix: about half of the faults, each at most ``scale`` likely. The driver dies
        more rarely, since it has many more occasions."""
        chosen = {f.name: rng.random() * scale * (rng.random() < 0.5) for f in fields(cls)}
        return cls(**{**chosen, "driver_dies": chosen["driver_dies"] / 10})


class SimulatedRoles:
    """All actors of a run. Answers commands with events in the timetable."""

    def __init__(
        self,
        config: Config,
        faults: Faults,
        rng: random.Random,
        weights: Mapping[str, float],
        lag: int,
    ) -> None:
        self._config = config
        self._faults = faults
        self._lag = lag
        self._rng = rng
        self._weights = weights
        self._seed = rng.getrandbits(32)
        self._num_names = 0
        self._served: dict[str, int] = {}
        """Living engine → version, oldest engine first: that one lags."""
        self._scoring: dict[str, dict[CallId, Score]] = {}
        """Verifier → its calls."""
        self._lost_payloads: set[str] = set()
        self.learner_version = self._restored = 0
        self.checkpoint_step = 0
        self.timetable = Timetable[Happening]()
        self.witness = Witness(
            config.schedule.groups_per_step, config.schedule.max_staleness, self._true_reward
        )
        self._stops = SimulatedStops(rng, self.witness)

    def start(self, fence: int) -> None:
        """A driver starts, with fresh actors; the learner goes on from its checkpoint."""
        self.timetable.keep_generated()
        self._served.clear()
        self._scoring.clear()
        self._lost_payloads.clear()
        self.learner_version = self._restored = self.checkpoint_step
        self.witness.saw_restart(fence, self.checkpoint_step)
        for _ in range(sum(fleet.actors for fleet in self._config.engine_fleets.values())):
            self._start_engine()
        self._panel = Panel.first(self._config)
        for name in self._config.principles:
            self._start_verifiers(name)
        if self._config.reference.enabled:
            for _ in range(self._config.reference.actors):
                self._join(REFERENCE, self._new_name(REFERENCE), CALLS_PER_ACTOR)

    def execute(self, command: Command) -> None:
        """Carry out one command."""
        match command:
            case GrantLease():
                self._generate(command)
            case InterruptLease():
                self._interrupt(command)
            case Score():
                self._score(command)
            case ScoreReference():
                self._score_reference(command)
            case Train():
                self._train(command.order)
            case Publish():
                self._answer(self._rng.uniform(0.5, 2), WeightsPublished(command.version))
            case LoadWeights():
                self._load(command)
            case Release():
                self.witness.saw_release(command.payloads)
            case _:
                pass

    def observe(self, happening: Happening) -> Event | None:
        """What the driver hears of something that happens now; None if nothing."""
        match happening:
            case StepDone(order=order):
                self._finish_step(order)
                return None
            case GroupGenerated(header=made) | GroupInterrupted(header=made) if (
                made.engine not in self._served
            ):
                return happening if self._happens(self._faults.ghost_answers) else None
            case EngineServing(engine=name, version=version):
                if name not in self._served:
                    return None
                self._served[name] = version
            case ActorLost(fleet=fleet, actor=name) if fleet == ROLLOUT:
                if name not in self._served:
                    return None
                del self._served[name]
                self._start_engine()
            case VerdictsReady(key=key, attempt=attempt, call=call):
                for calls in self._scoring.values():
                    calls.pop(CallId(key, attempt, call), None)
            case _:
                pass
        return happening

    # ---- engines ------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        name = self._new_name(ROLLOUT)
        self._served[name] = 0
        self._join(ROLLOUT, name, self._config.rollout.max_concurrent_groups)
        self.timetable.add(RESTART_S, EngineServing(name, 0))

    def _generate(self, command: GrantLease) -> None:
        lease, served = command.lease, self._served.get(command.engine)
        if served is None:
            return
        lengths = self._lengths(lease)
        self.witness.saw_lease(lease, served, self.learner_version, lengths)
        seconds = max(lengths) * SECONDS_PER_TOKEN
        oldest = self._stops.begin(command, served, sum(lengths))
        if self._happens(self._faults.engine_leaves):
            self.timetable.add(seconds * self._rng.random(), EngineLeaving(command.engine))
            self.timetable.add(seconds + RESTART_S, ActorLost(ROLLOUT, command.engine))
        if self._happens(self._faults.engine_dies * seconds / MEAN_LEASE_S):
            self.timetable.add(seconds * self._rng.random(), ActorLost(ROLLOUT, command.engine))
        if self._happens(self._faults.generation_fails):
            is_retryable = self._rng.random() < 0.8
            failure = GenerationFailure.of(
                lease, command.engine, "engine_error", "simulated", retryable=is_retryable
            )
            self._answer(seconds, GenerationFailed(failure))
        elif self._happens(self._faults.lease_is_stopped):
            stopped = self._stops.stop(lease.key, lease.attempt, "deadline")
            assert stopped is not None
            self._answer(seconds, stopped)
        else:
            self._answer(seconds, self._generated(command, lengths, oldest))

    def _interrupt(self, command: InterruptLease) -> None:
        if (stopped := self._stops.stop(command.key, command.attempt, "asked")) is not None:
            self._answer(self._rng.uniform(0, 1), stopped)

    def _lengths(self, lease: Lease) -> tuple[int, ...]:
        """As a prompt has them: a group that is generated again is as long as it was, so what is
        lost of the long ones cannot come back as short ones."""
        prompt = random.Random(f"{self._seed} {lease.key}")
        limit = self._config.rollout.max_new_tokens
        count = lease.sampling.num_samples
        return tuple(min(limit, 1 + int(prompt.lognormvariate(3, 1))) for _ in range(count))

    def _generated(
        self, command: GrantLease, lengths: tuple[int, ...], version: int
    ) -> GroupGenerated:
        lease = command.lease
        payload = f"{lease.key} attempt {lease.attempt} fence {lease.fence}"
        self.witness.saw_payload(payload, Made(lease.key, lease.attempt, version))
        header = GroupHeader(
            key=lease.key,
            attempt=lease.attempt,
            fence=lease.fence,
            engine=command.engine,
            lengths=lengths,
            min_version=version,
            max_version=version,
            sha256=hashlib.sha256(payload.encode()).hexdigest(),
            generate_s=max(lengths) * SECONDS_PER_TOKEN,
        )
        if self._happens(self._faults.payload_is_lost):
            self._lost_payloads.add(payload)
            delay_s = self._rng.uniform(0, 20)
            self._answer(delay_s, PayloadLost(lease.key, lease.attempt))
        return GroupGenerated(header, payload)

    def _load(self, command: LoadWeights) -> None:
        is_failed = self._happens(self._faults.load_fails)
        before = self._served.get(command.engine, 0)
        lags = command.engine == next(iter(self._served), "")
        newest = command.version == self._config.run.steps  # which is the end of the run
        behind = max(before, self._restored, command.version - self._lag * (lags and not newest))
        version = before if is_failed else behind
        self.timetable.add(self._rng.uniform(0.5, 3), EngineServing(command.engine, version))

    # ---- verifiers and references -------------------------------------------------------------

    def _start_verifier(self, fleet: str) -> None:
        name = self._new_name(fleet)
        self._scoring[name] = {}
        self._join(fleet, name, CALLS_PER_ACTOR)

    def _start_verifiers(self, principle: str) -> None:
        for _ in range(self._config.principles[principle].actors):
            self._start_verifier(self._panel.fleets[principle])

    def _swap(self) -> None:
        kept = [name for name in self._config.principles if self._rng.random() < 0.5]
        self._panel = self._panel.changed(self._config, kept)
        self.timetable.add(0.0, PanelChanged(self._panel))
        for name in sorted(self._config.principles.keys() - set(kept)):
            self._start_verifiers(name)

    def _score(self, call: Score) -> None:
        self.witness.saw_use(call.payload)
        mine = [name for name in self._scoring if name.startswith(f"{call.fleet}-")]
        actor = min(mine, key=lambda name: len(self._scoring[name]))
        self._scoring[actor][CallId(call.key, call.attempt, call.call)] = call
        seconds = self._rng.uniform(0.1, 2)
        if self._happens(self._faults.verifier_dies):
            for lost in self._scoring.pop(actor).values():
                event = ScoringLost(lost.key, lost.attempt, lost.fleet, lost.call)
                self.timetable.add(seconds, event)
            self.timetable.add(seconds, ActorLost(call.fleet, actor))
            self._start_verifier(call.fleet)
            return
        verdicts = tuple(self._verdict(call, index) for index in call.indexes)
        self._answer(
            seconds, VerdictsReady(call.key, call.attempt, call.fleet, call.call, verdicts)
        )

    def _verdict(self, call: Score, index: int) -> Verdict:
        is_invalid = self._happens(self._faults.verdict_is_invalid)
        return Verdict(
            sample_id=f"{call.key}/{index}",
            principle=call.principle,
            verifier="simulated",
            verifier_version="1",
            status=VerdictStatus.INVALID if is_invalid else VerdictStatus.OK,
            score=None
            if is_invalid
            else _true_score(call.key, call.attempt, index, call.principle),
            cause=InvalidCause.TIMEOUT if is_invalid else None,
            retryable=is_invalid and self._rng.random() < 0.8,
        )

    def _score_reference(self, call: ScoreReference) -> None:
        self.witness.saw_use(call.payload)
        seconds = self._rng.uniform(0.2, 3)
        if self._happens(self._faults.reference_is_lost):
            self._answer(seconds, ReferenceLost(call.key, call.attempt, call.call))
        else:
            payload = f"reference of {call.payload}, call {call.call}"
            self._answer(seconds, ReferenceReady(call.key, call.attempt, call.call, payload))

    # ---- learner ------------------------------------------------------------------------------

    def _train(self, order: TrainOrder) -> None:
        lost = [g for g in order.groups if g.payload in self._lost_payloads]
        for group in lost:
            self.timetable.add(0.1, PayloadLost(group.key, group.attempt))
        if lost:
            return
        for group in order.groups:
            self.witness.saw_use(group.payload)
            if group.reference is not None:
                self.witness.saw_use(group.reference)
        self.timetable.add(self._rng.uniform(1, 10), StepDone(order))

    def _finish_step(self, order: TrainOrder) -> None:
        self.witness.saw_step(order)
        self.learner_version = order.step
        is_due = order.step % self._config.checkpoint.every_steps == 0
        if is_due or order.step == self._config.run.steps:
            self.checkpoint_step = order.step
        report = StepReport(step=order.step, version=order.step, metrics={}, seconds=1.0)
        self._answer(self._rng.uniform(0, 0.5), StepCommitted(report))
        if self._happens(self._faults.panel_changes):
            self._swap()

    # ---- chance -------------------------------------------------------------------------------

    def _answer(self, delay_s: float, event: Event) -> None:
        """Send an answer that may be slow, doubled or missing. The learner's and the store's are
        never missing: those would be lost actors, which end the run."""
        if not isinstance(event, WeightsPublished | PayloadLost | StepCommitted):
            if self._happens(self._faults.actor_is_silent):
                return
            if self._happens(self._faults.answer_is_slow):
                delay_s *= 50
        self.timetable.add(delay_s, event)
        if self._happens(self._faults.answer_is_doubled):
            self.timetable.add(delay_s * self._rng.uniform(1, 5), event)

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    def _join(self, fleet: str, name: str, capacity: int | None) -> None:
        self.timetable.add(RESTART_S, ActorJoined(fleet, name, capacity))

    def _new_name(self, fleet: str) -> str:
        self._num_names += 1
        return f"{fleet}-{self._num_names}"

    def _true_reward(self, group: TrainGroup, index: int) -> float:
        return sum(
            weight * _true_score(group.key, group.attempt, index, principle)
            for principle, weight in self._weights.items()
        )


def _true_score(key: GroupKey, attempt: int, index: int, principle: str) -> float:
    """What an honest verifier says of a sample, always the same."""
    digest = hashlib.sha256(f"{key} {attempt} {index} {principle}".encode()).digest()
    return SCORES[digest[0] % len(SCORES)]
