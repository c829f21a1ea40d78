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

from actors.rollout import EngineStatus
from cluster import lease_calls
from cluster.coordinator import Coordinator
from cluster.engines import LOAD_CALL_S
from cluster.fleet import Exhausted, Fleet, FleetEvent, Joined, Lost, Reply
from cluster.fleet_keeper import FleetKeeper
from cluster.learner_group import LearnerGroup, LearnerLost
from cluster.ledger import Ledger
from cluster.panel_keeper import PanelKeeper
from cluster.probe_keeper import ProbeKeeper
from cluster.probe_log import Ruling
from cluster.protocol import (
    ROLLOUT,
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
    ResumeTraining,
    RetireFleet,
    Score,
    ScoreReference,
    StepCommitted,
    StepLost,
    Tick,
    Train,
    VerdictsTaken,
    WeightsPublished,
)
from cluster.remote import wait_for_any
from cluster.rollout_fleets import RolloutFleets, announced
from cluster.scorers import CALL_GRACE_S, Scorers, spent
from cluster.services import VerifierServices
from cluster.telemetry import Telemetry
from cluster.weight_store import PublishedWeights, WeightStore
from safeladder.config import Config
from safeladder.errors import RunFailedError, SafeladderError, TrippedError
from safeladder.records import (
    GenerationFailure,
    StepPayloadsLost,
    StepReport,
    TrainOrder,
    WeightManifest,
)

log = logging.getLogger(__name__)

TURN_S = 0.02
"""A turn begins no sooner than this after the one before, unless the learner has answered."""
TICK_S = 0.1
"""Nor later than this, whether something has happened or not."""


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
        probes: ProbeKeeper,
        fleets: FleetKeeper,
        services: VerifierServices,
        telemetry: Telemetry,
        save: Callable[[int], None],
        saved: int | None = None,
    ) -> None:
        self._config = config
        self._fence = fence
        self._coordinator = coordinator
        self._ledger = ledger
        self._rollout = rollout
        self._scorers = Scorers(verifiers, reference, keeper, probes, telemetry)
        self._learners = learners
        self._weights = weights
        self._keeper = keeper
        self._probes = probes
        self._fleets = fleets
        self._services = services
        self._telemetry = telemetry
        self._save = save
        self._held: set[str] = set()
        """Engines whose load of newer weights waits for a round of probes."""
        self._saved = saved
        self._ruling: Ruling | None = None
        """Why the run ends before its last step."""
        self._is_over = False
        self._events: list[Event] = []
        self._steps: list[tuple[TrainOrder, StepReport]] = []
        """Committed in this turn."""

    def run(self) -> Ruling | None:
        """Train until the coordinator says ``Finish``, and a round of probes that is open then is
        over; returns why that was early, if it was. Raises ``RunFailedError`` on ``Fail``,
        ``TrippedError`` for a tripwire that does not let the step end, and ``FencedError`` when a
        newer driver owns the run."""
        if (standing := self._probes.standing()) is not None:
            self._end_early(standing)
        self._announce_living_actors()
        while True:
            began = time.monotonic()
            self._poll()
            events, self._events = self._events, []
            commands: list[Command] = []
            for event in [*events, Tick(time.monotonic())]:
                commands += self._coordinator.handle(event)
            transitions = self._coordinator.drain_transitions()
            self._ledger.apply(transitions, self._fence, self._coordinator.constraints.drain())
            for command in commands:
                if isinstance(command, Finish):
                    self._is_over = True
                else:
                    self._execute(command)
            if self._is_over and not self._probes.is_open:
                self._save_an_early_end()
                return self._ruling
            self._rollout.send()
            self._scorers.send()
            self._tell_steps()
            self._follow_probes()
            self._events += self._keeper.step()
            self._events += self._fleets.step(self._coordinator)
            self._services.supervise()
            self._telemetry.turn(self._coordinator)
            self._rest(began)

    def _rest(self, began: float) -> None:
        """Until the learner answers, whose idle time is what costs; what the others answer is
        collected for ``TURN_S``, since a turn costs much and one more event in it little."""
        wait_for_any(self._learners.waiting, max(0.0, began + TURN_S - time.monotonic()))
        if not self._events:
            waiting = [self._learners.waiting, self._rollout.waiting, self._scorers.waiting]
            wait_for_any([one for many in waiting for one in many], TICK_S)

    def _tell_steps(self) -> None:
        """After the commands: the learner goes on meanwhile."""
        steps, self._steps = self._steps, []
        for order, report in steps:
            self._telemetry.trained(order, report, self._coordinator)

    # ---- probes -------------------------------------------------------------------------------

    def _follow_probes(self) -> None:
        ruling = self._probes.step()
        if ruling is not None:
            if ruling.kind in ("fail", "rollback"):
                raise TrippedError(ruling.text, ruling.kind)
            self._end_early(ruling)
        for engine in [held for held in self._held if not self._probes.holds(held)]:
            self._held.remove(engine)
            newest = self._weights.newest
            if newest is not None and engine in self._rollout.ready:
                self._load(LoadWeights(engine, newest.manifest.version))

    def _end_early(self, ruling: Ruling) -> None:
        """The running step is the last; a pause goes before an exit."""
        last = self._coordinator.end_early()
        if self._ruling is None or ruling.kind == "pause":
            self._ruling = ruling
        self._telemetry.ends_early(last)

    def _save_an_early_end(self) -> None:
        """Its checkpoint, unless one of that step was due; the learner has done all else."""
        if self._ruling is not None and (last := self._coordinator.last_step) != self._saved:
            self._save(last)

    # ---- events -------------------------------------------------------------------------------

    def _announce_living_actors(self) -> None:
        for engine in self._rollout.ready:
            self._on_rollout(Joined(actor=engine, value=self._rollout.said(engine)))
        self._events += self._scorers.announce()

    def _poll(self) -> None:
        """What has come. If the learner has answered, nothing else: it idles until its next order,
        and all others are asked for in the next turn."""
        learned = self._learners.poll()
        for reply in learned:
            if isinstance(reply, LearnerLost):
                self._on_learner_lost(reply)
            else:
                self._on_learner(reply.context, reply.value)
        if learned:
            return
        for event in self._rollout.poll():
            self._on_rollout(event)
            self._probes.on_rollout(event)
        self._events += self._scorers.poll()

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
            raise SafeladderError(spent(ROLLOUT, event.reason))
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
        self._probes.serves(reply.actor, status.served_version)

    def _on_lease_answered(self, reply: Reply) -> None:
        event = lease_calls.answer(reply)
        if isinstance(event, GroupGenerated):
            self._telemetry.generated(event.header)
        if isinstance(event, GenerationFailed) and event.failure.cause == "engine_error":
            # Ask before telling: a dead engine fails each new lease at once and would spend the
            # attempts of many groups before its heartbeat tells.
            probe = _Probe(failure=event.failure)
            self._rollout.call(reply.actor, "status", {}, context=probe, deadline_s=CALL_GRACE_S)
        else:
            self._events.append(event)

    def _on_learner(self, context: Any, value: Any) -> None:
        if isinstance(context, Train) and isinstance(value, StepReport):
            self._steps.append((context.order, value))
            self._events.append(StepCommitted(value))
            if self._is_checkpoint_due(value.step):
                self._save(value.step)
                self._saved = value.step
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

    # ---- commands -----------------------------------------------------------------------------

    def _execute(self, command: Command) -> None:
        match command:  # Release: the coordinator's handle was the last one, the object is freed
            case GrantLease() | InterruptLease():
                lease_calls.send(self._rollout, command, self._fence)
            case Score():
                self._events += self._scorers.score(command)
            case ScoreReference():
                self._events += self._scorers.price(command)
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
                self._scorers.retire(command.fleet)

    def _load_newest(self, engine: str) -> None:
        """A new engine serves the base model; it takes work only with the newest weights."""
        newest = self._weights.newest
        if newest is None:
            self._events.append(EngineServing(engine, 0))
            self._probes.serves(engine, 0)
        else:
            self._load(LoadWeights(engine, newest.manifest.version))

    def _load(self, command: LoadWeights) -> None:
        if self._probes.holds(command.engine):
            self._held.add(command.engine)
            return
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
