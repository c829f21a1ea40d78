"""What the coordinator hears (events) and what it wants done (commands): plain frozen data.

Owns the words between the pure coordinator and the shell that runs it (``cluster/loop.py`` on
Ray, ``cluster/simulator.py`` in virtual time). Knows neither how a command is carried out nor what
is inside a payload: handles of the payload store pass through unread.

The contract of a shell::

    for event in collected:            # in any order, late or twice: the coordinator checks
        commands += coordinator.handle(event)
    ledger.apply(coordinator.drain_transitions(), fence)     # before any command is carried out
    for command in commands:           # in this order: Publish(v) stands before Train(v + 1)
        execute(command)

Who answers what:

==================  =============================================================================
``GrantLease``      ``GroupGenerated`` | ``GroupInterrupted`` | ``GenerationFailed`` |
                    ``ActorLost``; else the deadline
``InterruptLease``  nothing of its own: the lease is answered sooner
``Score``           ``VerdictsReady`` | [``PayloadLost``,] ``ScoringLost``; else the deadline
``ScoreReference``  ``ReferenceReady`` | [``PayloadLost``,] ``ReferenceLost``; else the deadline
``Train``           ``StepCommitted`` | ``StepLost`` | ``PayloadLost`` of a group in the order
``Publish``         ``WeightsPublished``
``LoadWeights``     ``EngineServing`` (an older version than asked: the load failed)
``RetireFleet``     nothing
``VerdictsTaken``   nothing
==================  =============================================================================

Every actor is announced by ``ActorJoined``, verifiers and references too: calls wait inside the
coordinator until their fleet has a free slot, so that queues live here and not in mailboxes, and a
call's deadline starts when it is sent. A lost or late answer frees its slot at the deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.panel import Panel
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.partials import PartialHeader
from safeladder.records import (
    GenerationFailure,
    GroupHeader,
    GroupKey,
    Lease,
    StepReport,
    TrainOrder,
    Verdict,
)

ROLLOUT = "rollout"
REFERENCE = "reference"
PROBE_ATTEMPT = 1_000_000
"""Beyond the attempts of any group."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes. The coordinator has no clock but this one; about ten a second serve well."""

    now_s: float
    """Monotonic seconds, any origin."""


@dataclass(frozen=True, slots=True)
class ActorJoined:
    """An actor is up, or a scorer's capacity has changed. Before ``EngineServing``: no lease."""

    fleet: str
    """``rollout``, ``reference`` or ``panel.verifier_fleet(principle)``."""
    actor: str
    """Unique within the fleet; a replacement may reuse the name after ``ActorLost``."""
    capacity: int | None
    """Leases or calls that it holds at a time, ≥ 1. For an engine with a profile an upper bound;
    None leaves it to its cache."""
    profile: EngineProfile | None = None
    """Of an engine that says what it can do."""


@dataclass(frozen=True, slots=True)
class ActorLost:
    """An actor is dead or given up. Its leases are given out again. Calls to a verifier or
    reference are told one by one (``ScoringLost``, ``ReferenceLost``); if it was the last of its
    fleet, all of them count as lost at once."""

    fleet: str
    actor: str


@dataclass(frozen=True, slots=True)
class EngineLeaving:
    """An engine is to leave: see ``LeaseDesk.drain``. ``ActorLost`` follows."""

    engine: str


@dataclass(frozen=True, slots=True)
class EngineServing:
    """An engine says which version makes its next token: after its start, and after each load,
    also a failed one."""

    engine: str
    version: int
    profile: EngineProfile | None = None
    """Anew: the first load shows how fast its link is. None if nothing is new."""


@dataclass(frozen=True, slots=True)
class EngineReported:
    """An engine says how full it is; a few times in a minute serve well."""

    engine: str
    load: EngineLoad


@dataclass(frozen=True, slots=True)
class GroupGenerated:
    """All completions of a lease are in the payload store."""

    header: GroupHeader
    payload: Any
    """Handle of the ``RolloutGroup``."""


@dataclass(frozen=True, slots=True)
class GroupInterrupted:
    """A lease that was stopped, by ``InterruptLease`` or at its own deadline."""

    header: PartialHeader
    payload: Any | None
    """Handle of the ``PartialGroup``; None if no token was made."""


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """A lease that brought no group."""

    failure: GenerationFailure


@dataclass(frozen=True, slots=True)
class VerdictsReady:
    """One verdict for each index of the ``Score`` with the same four first fields, in order."""

    key: GroupKey
    attempt: int
    fleet: str
    call: int
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class ScoringLost:
    """A ``Score`` that will bring nothing: its verifier actor died, or the call itself failed."""

    key: GroupKey
    attempt: int
    fleet: str
    call: int


@dataclass(frozen=True, slots=True)
class ReferenceReady:
    """Reference log-probs of a group are in the payload store."""

    key: GroupKey
    attempt: int
    call: int
    payload: Any


@dataclass(frozen=True, slots=True)
class ReferenceLost:
    """A ``ScoreReference`` that will bring nothing."""

    key: GroupKey
    attempt: int
    call: int


@dataclass(frozen=True, slots=True)
class PayloadLost:
    """A payload (completions or reference log-probs) of a group cannot be read any more. If the
    group belongs to a ``Train`` order, that order has not run and never will: another one for the
    same step follows."""

    key: GroupKey
    attempt: int


@dataclass(frozen=True, slots=True)
class PanelChanged:
    """Groups whose scoring begins from now on are judged by this panel. Its new fleets are up;
    their actors' ``ActorJoined`` follow."""

    panel: Panel


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """The optimizer step is done on every rank."""

    report: StepReport


@dataclass(frozen=True, slots=True)
class StepLost:
    """The learner group died in a step. Its weights are gone: the run fails, and resumes from its
    newest checkpoint."""

    step: int


@dataclass(frozen=True, slots=True)
class WeightsPublished:
    """Engines can load this version now."""

    version: int


Event = (
    Tick
    | ActorJoined
    | ActorLost
    | EngineLeaving
    | EngineServing
    | EngineReported
    | GroupGenerated
    | GroupInterrupted
    | GenerationFailed
    | VerdictsReady
    | ScoringLost
    | ReferenceReady
    | ReferenceLost
    | PayloadLost
    | PanelChanged
    | StepCommitted
    | StepLost
    | WeightsPublished
)


@dataclass(frozen=True, slots=True)
class GrantLease:
    """Generate this group on this engine. ``lease`` is complete (prompt, sampling, deadline)."""

    engine: str
    lease: Lease


@dataclass(frozen=True, slots=True)
class InterruptLease:
    """Let the engine answer this lease now, with what is there."""

    engine: str
    key: GroupKey
    attempt: int


@dataclass(frozen=True, slots=True)
class Score:
    """Judge these completions of a group under one principle. Goes to ``fleet``, which has a free
    slot. ``call`` comes back with the answer; below 0 it is a probe (see ``probes``)."""

    key: GroupKey
    attempt: int
    fleet: str
    call: int
    principle: str
    payload: Any
    indexes: tuple[int, ...]
    timeout_s: float

    @property
    def is_probe(self) -> bool:
        """Whether the answer is only to show that the verifier works. If it cannot be asked, even
        for want of the payload, that is ``ScoringLost``."""
        return self.call < 0

    @property
    def asked_as(self) -> int:
        """The attempt that the verifier is told. Each probe has its own, since a service keeps the
        answers that it has given to equal questions."""
        return PROBE_ATTEMPT - self.call if self.is_probe else self.attempt


@dataclass(frozen=True, slots=True)
class ScoreReference:
    """Compute the reference log-probs of every completion of a group. A free slot is there."""

    key: GroupKey
    attempt: int
    call: int
    payload: Any


@dataclass(frozen=True, slots=True)
class VerdictsTaken:
    """These verdicts count, the INVALID ones that stand for lost calls or unfit answers included;
    for the log. Of several on one sample, attempt and principle, that of the last call holds."""

    key: GroupKey
    attempt: int
    call: int
    route: str
    generation: int
    """Of the panel that judges the group."""
    factors: Mapping[str, float]  # principle → constraint weight that is in force for the group
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Train:
    """Run one optimizer step. A newer order for the same step replaces an older one."""

    order: TrainOrder


@dataclass(frozen=True, slots=True)
class Publish:
    """Export the learner's weights under this version, before the next ``Train`` changes them."""

    version: int


@dataclass(frozen=True, slots=True)
class LoadWeights:
    """Let an engine load a published version."""

    engine: str
    version: int


@dataclass(frozen=True, slots=True)
class RetireFleet:
    """No group needs this verifier fleet any more: its panel has been replaced."""

    fleet: str


@dataclass(frozen=True, slots=True)
class Release:
    """These payload handles are not needed any more."""

    payloads: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PauseTraining:
    """No ``Train`` will come until ``ResumeTraining``; for logs and the terminal view."""

    reason: str


@dataclass(frozen=True, slots=True)
class ResumeTraining:
    """What paused training is over."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a person should see. ``kind`` is a short stable word, such as ``verifier``."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """All steps are trained and the last version is served. Nothing follows."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run cannot go on. Nothing follows. ``exit_code`` as in ``safeladder.errors``."""

    text: str
    exit_code: int


Command = (
    GrantLease
    | InterruptLease
    | Score
    | ScoreReference
    | VerdictsTaken
    | Train
    | Publish
    | LoadWeights
    | RetireFleet
    | Release
    | PauseTraining
    | ResumeTraining
    | Alert
    | Finish
    | Fail
)
