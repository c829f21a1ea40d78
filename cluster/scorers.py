"""The shell's side of scoring: fleets of verifiers and references, whose answers become events.

Owns how a ``Score`` or ``ScoreReference`` is sent and what its answer, failure or loss is called.
What follows from them the coordinator decides.
"""

from __future__ import annotations

import math
import time
from typing import Any

from actors.reference import ReferenceFailure, ReferenceScored
from actors.verifier import ScoredGroup, ScorePayloadLost
from cluster.engines import LOAD_CALL_S
from cluster.evaluation import Asked
from cluster.fleet import Exhausted, Fleet, FleetEvent, Joined, Lost, Reply
from cluster.panel_keeper import CALLS_PER_VERIFIER, CanaryCall, PanelKeeper
from cluster.probe_keeper import ProbeKeeper
from cluster.protocol import (
    REFERENCE,
    ActorJoined,
    ActorLost,
    Event,
    PayloadLost,
    ReferenceLost,
    ReferenceReady,
    Score,
    ScoreReference,
    ScoringLost,
    VerdictsReady,
)
from cluster.telemetry import Telemetry
from safeladder.errors import SafeladderError, VerifierUnavailableError

CALL_GRACE_S = 30.0
"""A call may answer this much later than the role's own deadline."""
CALLS_PER_REFERENCE = 2
AHEAD_S = 0.2
"""An actor holds as many calls as it answers in this time, so that it has some while its answers
travel and the next turn comes. A slow one holds the few that it was announced with."""
MOST_CALLS = 64
PACE_S = 0.25
"""Time over which it is measured how many it answers."""


class Pace:
    """How many calls one actor may hold: from ``least`` on as many as it answers in ``AHEAD_S``."""

    def __init__(self, least: int) -> None:
        self.capacity = self._least = least
        self._num_answers = 0
        self._since = 0.0

    def note(self, now: float) -> bool:
        """It has answered a call. Whether its capacity has changed."""
        self._num_answers += 1
        passed = now - self._since
        if passed < PACE_S:
            return False
        ahead = math.ceil(self._num_answers * AHEAD_S / passed)
        before, self.capacity = self.capacity, min(max(self._least, ahead), MOST_CALLS)
        self._num_answers, self._since = 0, now
        return self.capacity != before


class Scorers:
    """All fleets that score. ``verifiers``, name → fleet, is the crew's: swaps add to it."""

    def __init__(
        self,
        verifiers: dict[str, Fleet],
        reference: Fleet | None,
        keeper: PanelKeeper,
        probes: ProbeKeeper,
        telemetry: Telemetry,
    ) -> None:
        self._verifiers = verifiers
        self._reference = reference
        self._keeper = keeper
        self._probes = probes
        self._telemetry = telemetry
        self._paces: dict[str, Pace] = {}
        """Actor → its pace, once it has answered."""

    @property
    def waiting(self) -> list[Any]:
        """References of which one is there as soon as an actor has something to say."""
        return [reference for fleet in self._fleets for reference in fleet.waiting]

    def announce(self) -> list[Event]:
        """The actors that are up already."""
        events: list[Event] = []
        for fleet in self._verifiers.values():
            for actor in fleet.ready:
                events += self._on_verifier(fleet.name, Joined(actor=actor, value=None))
        if self._reference is not None:
            for actor in self._reference.ready:
                events += self._on_reference(Joined(actor=actor, value=None))
        return events

    def poll(self) -> list[Event]:
        """What has come; never waits. Raises ``SafeladderError`` if a fleet is spent."""
        events: list[Event] = []
        for fleet in self._verifiers.values():
            for event in fleet.poll():
                self._probes.on_verifier(fleet.name, event)
                events += self._on_verifier(fleet.name, event)
        if self._reference is not None:
            for event in self._reference.poll():
                events += self._on_reference(event)
        return events

    def send(self) -> None:
        """Let the queued calls go."""
        for fleet in self._fleets:
            fleet.send()

    def score(self, command: Score) -> list[Event]:
        """Queue a call to a verifier; its loss, if there is nobody to ask."""
        fleet = self._verifiers[command.fleet]
        actor = fleet.least_busy()
        arguments = {
            "payload": command.payload,
            "key": command.key,
            "attempt": command.asked_as,
            "indexes": command.indexes,
        }
        deadline_s = command.timeout_s + CALL_GRACE_S
        if actor is not None and fleet.call(
            actor, "score", arguments, context=command, deadline_s=deadline_s
        ):
            return []
        return [_scoring_lost(command)]

    def price(self, command: ScoreReference) -> list[Event]:
        """Queue a call to a reference; its loss, if there is nobody to ask."""
        fleet = self._reference
        actor = None if fleet is None else fleet.least_busy()
        arguments = {
            "payload_handle": command.payload,
            "key": command.key,
            "attempt": command.attempt,
        }
        if fleet is not None and actor is not None and fleet.call(
            actor, "score", arguments, context=command, deadline_s=LOAD_CALL_S
        ):  # fmt: skip
            return []
        return [_reference_lost(command)]

    def retire(self, fleet: str) -> None:
        """End a fleet of verifiers that a swap has replaced."""
        self._verifiers.pop(fleet).close()

    @property
    def _fleets(self) -> list[Fleet]:
        reference = [] if self._reference is None else [self._reference]
        return [*self._verifiers.values(), *reference]

    def _on_verifier(self, fleet: str, event: FleetEvent) -> list[Event]:
        match event:
            case Joined():
                return [ActorJoined(fleet, event.actor, CALLS_PER_VERIFIER)]
            case Lost():
                self._paces.pop(event.actor, None)
                self._telemetry.actor_lost(fleet, event)
                lost = [_scoring_lost(c) for c in event.contexts if isinstance(c, Score)]
                return [*lost, ActorLost(fleet, event.actor)]
            case Exhausted():
                raise VerifierUnavailableError(spent(fleet, event.reason))
            case Reply(context=CanaryCall()):
                self._keeper.take(event.context, event.value)
                return []
            case Reply(context=Asked()):
                return []
        call, value = event.context, event.value
        if isinstance(value, ScoredGroup):
            verdicts = tuple(value.verdicts)
            ready = VerdictsReady(call.key, call.attempt, fleet, call.call, verdicts)
            return [ready, *self._pace(fleet, event.actor, CALLS_PER_VERIFIER)]
        if isinstance(value, ScorePayloadLost) and not call.is_probe:
            # The loss of the call frees its slot, after the group has been given up.
            return [PayloadLost(value.key, value.attempt), _scoring_lost(call)]
        return [_scoring_lost(call)]

    def _on_reference(self, event: FleetEvent) -> list[Event]:
        match event:
            case Joined():
                return [ActorJoined(REFERENCE, event.actor, CALLS_PER_REFERENCE)]
            case Lost():
                self._paces.pop(event.actor, None)
                self._telemetry.actor_lost(REFERENCE, event)
                lost = [_reference_lost(call) for call in event.contexts]
                return [*lost, ActorLost(REFERENCE, event.actor)]
            case Exhausted():
                raise SafeladderError(spent(REFERENCE, event.reason))
        call, value = event.context, event.value
        if isinstance(value, ReferenceScored):
            ready = ReferenceReady(call.key, call.attempt, call.call, value.payload)
            return [ready, *self._pace(REFERENCE, event.actor, CALLS_PER_REFERENCE)]
        if isinstance(value, ReferenceFailure) and value.cause == "payload_lost":
            return [PayloadLost(value.key, value.attempt), _reference_lost(call)]
        return [_reference_lost(call)]

    def _pace(self, fleet: str, actor: str, least: int) -> list[Event]:
        pace = self._paces.setdefault(actor, Pace(least))
        if pace.note(time.monotonic()):
            return [ActorJoined(fleet, actor, pace.capacity)]
        return []


def spent(fleet: str, reason: str) -> str:
    """Why a run ends whose fleet has no actor left."""
    return f"no {fleet} actor is left and its restarts are spent: {reason}"


def _scoring_lost(call: Score) -> ScoringLost:
    return ScoringLost(call.key, call.attempt, call.fleet, call.call)


def _reference_lost(call: ScoreReference) -> ReferenceLost:
    return ReferenceLost(call.key, call.attempt, call.call)
