"""The training loop on Ray: the shell around the pure coordinator.

Each turn collects what the fleets and the learner report, lets the coordinator decide, writes its
transitions to the ledger **before** anything is carried out, then carries out the commands:

    poll fleets ─▶ events ─▶ coordinator ─▶ transitions ─▶ ledger (one commit)
         ▲                        └───────▶ commands ────▶ fleets, learner, weight store
         └──────────────────────────────────────────────────────┘

It never waits for one of them: every call has a deadline in its fleet, and every command's answer,
failure or loss comes back as an event. It knows nothing of tokens or gradients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.reference import ReferenceFailure, ReferenceScored
from actors.rollout import EngineStatus
from actors.verifier import ScoredGroup, ScorePayloadLost
from cluster import lease_calls
from cluster.coordinator import Coordinator
from cluster.engines import LOAD_CALL_S
from cluster.fleet import Exhausted, Fleet, FleetEvent, Joined, Lost, Reply
from cluster.fleet_keeper import FleetKeeper
from cluster.learner_group import LearnerGroup, LearnerLost
from cluster.ledger import Ledger
from cluster.panel_keeper import CALLS_PER_VERIFIER, CanaryCall, PanelKeeper
from cluster.protocol import (
    REFERENCE,
    ROLLOUT,
    ActorJoined,
    ActorLost,
    Alert,
    Command,
    EngineServing,
    Event,
    Fail,
    Finish,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    InterruptLease,
    LoadWeights,
    PauseTraining,
    PayloadLost,
    Publish,
    ReferenceLost,
    ReferenceReady,
    ResumeTraining,
    RetireFleet,
    Score,
    ScoreReference,
    ScoringLost,
    StepCommitted,
    StepLost,
    Tick,
    Train,
    VerdictsReady,
    VerdictsTaken,
    WeightsPublished,
)
from cluster.rollout_fleets import RolloutFleets, announced
from cluster.services import VerifierServices
from cluster.telemetry import Telemetry
from cluster.weight_store import PublishedWeights, WeightStore
from safeladder.config import Config
from safeladder.errors import RunFailedError, SafeladderError, VerifierUnavailableError
from safeladder.records import GenerationFailure, StepPayloadsLost, StepReport, WeightManifest

log = logging.getLogger(__name__)

TURN_S = 0.02
"""Pause between two turns that found nothing to do."""
GRACE_S = 30.0
"""A call may answer this much later than the role's own deadline."""
CALLS_PER_REFERENCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """Context of a load of weights."""

    manifest: WeightManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """Context of a look at an engine that failed a lease."""

    failure: GenerationFailure


class Loop:
    """One run's main loop."""

    def __init__(
        self,
        config: Config,
        *,
        fence: int,
        coordinator: Coordinator,
        ledger: Ledger,
        rollout: RolloutFleets,
        verifiers: dict[str, Fleet],
        reference: Fleet | None,
        learners: LearnerGroup,
        weights: WeightStore,
        keeper: PanelKeeper,
        fleets: FleetKeeper,
        services: VerifierServices,
        telemetry: Telemetry,
        save: Callable[[int], None],
    ) -> None:
        self._config = config
        self._fence = fence
        self._coordinator = coordinator
        self._ledger = ledger
        self._rollout = rollout
        self._verifiers = verifiers
        self._reference = reference
        self._learners = learners
        self._weights = weights
        self._keeper = keeper
        self._fleets = fleets
        self._services = services
        self._telemetry = telemetry
        self._save = save
        self._events: list[Event] = []

    def run(self) -> None:
        """Train until the coordinator says ``Finish``. Raises ``RunFailedError`` on ``Fail`` and
        ``FencedError`` when a newer driver owns the run."""
        self._announce_living_actors()
        while True:
            self._poll()
            events, self._events = self._events, []
            commands: list[Command] = []
            for event in [*events, Tick(time.monotonic())]:
                commands += self._coordinator.handle(event)
            self._ledger.apply(self._coordinator.drain_transitions(), self._fence)
            for command in commands:
                if isinstance(command, Finish):
                    return
                self._execute(command)
            self._events += self._keeper.step()
            self._events += self._fleets.step(self._coordinator)
            self._services.supervise()
            self._telemetry.turn(self._coordinator)
            if not events and not commands:
                time.sleep(TURN_S)

    # ---- events -------------------------------------------------------------------------------

    def _announce_living_actors(self) -> None:
        for engine in self._rollout.ready:
            self._on_rollout(Joined(actor=engine, value=self._rollout.said(engine)))
        for fleet in self._verifiers.values():
            for actor in fleet.ready:
                self._on_verifier(fleet.name, Joined(actor=actor, value=None))
        if self._reference is not None:
            for actor in self._reference.ready:
                self._on_reference(Joined(actor=actor, value=None))

    def _poll(self) -> None:
        for event in self._rollout.poll():
            self._on_rollout(event)
        for fleet in self._verifiers.values():
            for event in fleet.poll():
                self._on_verifier(fleet.name, event)
        if self._reference is not None:
            for event in self._reference.poll():
                self._on_reference(event)
        for reply in self._learners.poll():
            if isinstance(reply, LearnerLost):
                self._on_learner_lost(reply)
            else:
                self._on_learner(reply.context, reply.value)

    def _on_rollout(self, event: FleetEvent) -> None:
        if isinstance(event, Joined):
            self._events.append(announced(self._config, event))
            self._load_newest(event.actor)
        elif isinstance(event, Lost):
            self._telemetry.actor_lost(ROLLOUT, event)
            self._events.append(ActorLost(ROLLOUT, event.actor))
            for context in event.contexts:
                if isinstance(context, _Load):
                    self._weights.release(context.manifest.version)
        elif isinstance(event, Exhausted):
            self._give_up("rollout", event.reason)
        else:
            self._on_rollout_reply(event)

    def _on_rollout_reply(self, reply: Reply) -> None:
        value = reply.value
        if isinstance(reply.context, _Load):
            self._on_loaded(reply, reply.context.manifest)
        elif isinstance(reply.context, _Probe):
            if not isinstance(value, EngineStatus) or value.is_dead:
                self._rollout.retire(reply.actor, reply.context.failure.detail)
            else:
                self._events.append(GenerationFailed(reply.context.failure))
        elif isinstance(reply.context, GrantLease):  # else a late answer to an evaluation
            self._on_lease_answered(reply)

    def _on_loaded(self, reply: Reply, manifest: WeightManifest) -> None:
        self._weights.release(manifest.version)
        status = reply.value
        if (
            not isinstance(status, EngineStatus)
            or status.is_dead
            or (status.served_version == manifest.version and not status.has_loaded(manifest))
        ):  # the last: the base model, where another version 0 was to be loaded
            self._rollout.retire(reply.actor, f"weights not loaded: {status}")
            return
        if status.failure is not None:
            self._telemetry.alert("weights", f"{reply.actor}: {status.failure}")
        self._events.append(EngineServing(reply.actor, status.served_version, status.profile))

    def _on_lease_answered(self, reply: Reply) -> None:
        event = lease_calls.answer(reply)
        if isinstance(event, GroupGenerated):
            self._telemetry.generated(event.header)
        if isinstance(event, GenerationFailed) and event.failure.cause == "engine_error":
            # Ask before telling: a dead engine fails each new lease at once and would spend the
            # attempts of many groups before its heartbeat tells.
            probe = _Probe(failure=event.failure)
            self._rollout.call(reply.actor, "status", {}, context=probe, deadline_s=GRACE_S)
        else:
            self._events.append(event)

    def _on_verifier(self, fleet: str, event: FleetEvent) -> None:
        if isinstance(event, Joined):
            self._events.append(ActorJoined(fleet, event.actor, CALLS_PER_VERIFIER))
        elif isinstance(event, Lost):
            self._telemetry.actor_lost(fleet, event)
            self._events += [_scoring_lost(c) for c in event.contexts if isinstance(c, Score)]
            self._events.append(ActorLost(fleet, event.actor))
        elif isinstance(event, Exhausted):
            self._give_up(fleet, event.reason, VerifierUnavailableError)
        elif isinstance(event.context, CanaryCall):
            self._keeper.take(event.context, event.value)
        elif isinstance(event.value, ScoredGroup):
            call: Score = event.context
            self._events.append(
                VerdictsReady(call.key, call.attempt, fleet, call.call, tuple(event.value.verdicts))
            )
        elif isinstance(event.value, ScorePayloadLost) and not event.context.is_probe:
            self._events.append(PayloadLost(event.value.key, event.value.attempt))
        else:
            self._events.append(_scoring_lost(event.context))

    def _on_reference(self, event: FleetEvent) -> None:
        if isinstance(event, Joined):
            self._events.append(ActorJoined(REFERENCE, event.actor, CALLS_PER_REFERENCE))
        elif isinstance(event, Lost):
            self._telemetry.actor_lost(REFERENCE, event)
            for call in event.contexts:
                self._events.append(ReferenceLost(call.key, call.attempt, call.call))
            self._events.append(ActorLost(REFERENCE, event.actor))
        elif isinstance(event, Exhausted):
            self._give_up(REFERENCE, event.reason)
        elif isinstance(event.value, ReferenceScored):
            call = event.context
            self._events.append(
                ReferenceReady(call.key, call.attempt, call.call, event.value.payload)
            )
        elif isinstance(event.value, ReferenceFailure) and event.value.cause == "payload_lost":
            self._events.append(PayloadLost(event.value.key, event.value.attempt))
        else:
            call = event.context
            self._events.append(ReferenceLost(call.key, call.attempt, call.call))

    def _on_learner(self, context: Any, value: Any) -> None:
        if isinstance(context, Train) and isinstance(value, StepReport):
            self._telemetry.trained(context.order, value, self._coordinator)
            self._events.append(StepCommitted(value))
            if self._is_checkpoint_due(value.step):
                self._save(value.step)
        elif isinstance(value, StepPayloadsLost):
            self._events += [PayloadLost(key, attempt) for key, attempt in value.groups]
        elif isinstance(context, Publish):
            manifest, payload = value
            self._weights.commit(PublishedWeights(manifest=manifest, payload=payload))
            self._events.append(WeightsPublished(manifest.version))

    def _is_checkpoint_due(self, step: int) -> bool:
        return step % self._config.checkpoint.every_steps == 0 or step == self._config.run.steps

    def _on_learner_lost(self, lost: LearnerLost) -> None:
        if lost.exit_code != 1:  # one of our own errors: it says more than "a rank is gone"
            raise RunFailedError(lost.reason, lost.exit_code)
        log.error("learner lost: %s", lost.reason)
        self._telemetry.alert("learner", lost.reason)
        if not isinstance(lost.context, Train):
            raise RunFailedError(f"{lost.reason}; go on by `safeladder resume`", lost.exit_code)
        self._events.append(StepLost(lost.context.order.step))

    def _give_up(
        self, fleet: str, reason: str, kind: type[SafeladderError] = SafeladderError
    ) -> None:
        raise kind(f"no {fleet} actor is left and its restarts are spent: {reason}")

    # ---- commands -----------------------------------------------------------------------------

    def _execute(self, command: Command) -> None:
        match command:  # Release: the coordinator's handle was the last one, the object is freed
            case GrantLease() | InterruptLease():
                lease_calls.send(self._rollout, command, self._fence)
            case Score():
                self._score(command)
            case ScoreReference():
                self._score_reference(command)
            case Train():
                self._learners.call(
                    "train",
                    {"order": command.order},
                    context=command,
                    deadline_s=self._config.learner.step_deadline_s,
                )
            case Publish():
                self._learners.call(
                    "publish",
                    {"version": command.version, "fence": self._fence},
                    context=command,
                    deadline_s=LOAD_CALL_S,
                )
            case LoadWeights():
                self._load(command)
            case Fail():
                raise RunFailedError(command.text, command.exit_code)
            case PauseTraining() | ResumeTraining() | Alert() | VerdictsTaken():
                self._telemetry.notice(command)
            case RetireFleet():
                self._verifiers.pop(command.fleet).close()

    def _score(self, command: Score) -> None:
        fleet = self._verifiers[command.fleet]
        actor = fleet.least_busy()
        arguments = {
            "payload": command.payload,
            "key": command.key,
            "attempt": command.asked_as,
            "indexes": command.indexes,
        }
        if actor is None or not fleet.call(
            actor, "score", arguments, context=command, deadline_s=command.timeout_s + GRACE_S
        ):
            self._events.append(_scoring_lost(command))

    def _score_reference(self, command: ScoreReference) -> None:
        fleet = self._reference
        actor = None if fleet is None else fleet.least_busy()
        arguments = {
            "payload_handle": command.payload,
            "key": command.key,
            "attempt": command.attempt,
        }
        if fleet is None or actor is None or not fleet.call(
            actor, "score", arguments, context=command, deadline_s=LOAD_CALL_S
        ):  # fmt: skip
            self._events.append(ReferenceLost(command.key, command.attempt, command.call))

    def _load_newest(self, engine: str) -> None:
        """A new engine serves the base model; it takes work only with the newest weights."""
        newest = self._weights.newest
        if newest is None:
            self._events.append(EngineServing(engine, 0))
        else:
            self._load(LoadWeights(engine, newest.manifest.version))

    def _load(self, command: LoadWeights) -> None:
        weights = self._weights.acquire(command.version)
        sent = self._rollout.call(
            command.engine,
            "load_weights",
            {"manifest": weights.manifest, "payload": weights.payload},
            context=_Load(manifest=weights.manifest),
            deadline_s=LOAD_CALL_S,
        )
        if not sent:
            self._weights.release(command.version)


def _scoring_lost(call: Score) -> ScoringLost:
    return ScoringLost(call.key, call.attempt, call.fleet, call.call)
