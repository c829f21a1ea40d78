"""Keeps the panel of a live run: hot swaps of principles, and canaries.

::

    swaps/1.yaml ─▶ checked, services up ─▶ new fleets up ─▶ their canaries right ─▶ in force
                              └───────────────────┴──────────────────┴──▶ refused, nothing changed

The new panel takes over at a group boundary (see ``panel``); ``swaps/1.json`` says how it went, and
the configuration in force is written to ``config.yaml``, which ``resume`` reads. Training goes on
all the while: what takes time happens in a thread or in the new actors.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster.canaries import Canary, faults_of, first_round, requests_of
from cluster.checks import require_right
from cluster.crew import WAIT_S, Crew
from cluster.fleet import Exhausted, Fleet, Joined, Lost, Reply
from cluster.panel import Panel
from cluster.protocol import ActorJoined, Event, PanelChanged
from cluster.services import VerifierServices
from cluster.swaps import PanelSource, SwapRequest, Swaps, check_swap, kept_principles
from cluster.telemetry import Telemetry
from safeladder.config import Config
from safeladder.errors import SafeladderError, VerifierUnavailableError
from safeladder.records import Verdict

LOOK_EVERY_S = 1.0
CALLS_PER_VERIFIER = 8
WARM_UP_DEADLINE_S = 600.0
GRACE_S = 30.0
"""A round of canaries may be answered this much later than the verifier's own deadline."""


@dataclass(frozen=True, slots=True)
class CanaryCall:
    """Context of a round of canaries of one principle."""

    principle: str
    fleet: str
    canaries: Sequence[Canary]
    said: str = ""
    """Verifier and version of a fleet that is coming up."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A swap that was checked. All files have been read: the loop reads none."""

    source: PanelSource
    config: Config
    """With the addresses of its services."""
    kept: set[str]


@dataclass(slots=True)
class _WarmUp:
    """A swap whose new fleets are coming up."""

    request: SwapRequest
    source: PanelSource
    panel: Panel
    deadline_s: float
    fleets: dict[str, Fleet]
    """Name → new fleet."""
    versions: dict[str, str] = field(default_factory=dict)
    """Fleet → verifier and version, once one actor is up and its canaries are right."""


class PanelKeeper:
    """One for each execution of a run; ``step`` once in every turn of the loop. ``source`` is what
    the first panel was made of, its ``config`` as it was asked for, before services had addresses.
    """

    def __init__(
        self, source: PanelSource, crew: Crew, swaps: Swaps, services: VerifierServices,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._source = source
        self._crew = crew
        self._swaps = swaps
        self._services = services
        self._telemetry = telemetry
        self._worker = ThreadPoolExecutor(1, "swap")  # services die with the thread that made them
        self._preparing: tuple[SwapRequest, Future[_Prepared]] | None = None
        self._warm_up: _WarmUp | None = None
        self._next_look_s = 0.0
        self._unanswered: set[int] = set()
        """Refused requests that could not be told so."""
        self._rounds = itertools.count(first_round() + 1)
        self._next_round_s: dict[str, float] = {}

    def step(self) -> list[Event]:
        """Go on with a swap as far as it goes without waiting, and ask canaries when due."""
        now_s = time.monotonic()
        self._ask_canaries(now_s)
        if self._warm_up is not None:
            return self._step_warm_up(self._warm_up, now_s)
        if self._preparing is not None:
            self._step_preparing(*self._preparing, now_s)
        elif now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_EVERY_S
            request = self._swaps.next_request()
            if request is not None and request.number not in self._unanswered:
                self._telemetry.alert("principles", f"swap {request.number} was asked for")
                future = self._worker.submit(self._prepare, request)
                self._preparing = request, future
        return []

    def take(self, call: CanaryCall, value: object) -> None:
        """The answer to a round of canaries; it says nothing about a fleet that was replaced."""
        if self._crew.panel.fleets.get(call.principle) != call.fleet:
            return
        faults = _faults(call.canaries, value)
        self._telemetry.canaries(call.principle, len(faults))
        if faults:
            self._telemetry.alert("canary", f"{call.principle} drifts: {'; '.join(faults[:3])}")

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    # ---- canaries -----------------------------------------------------------------------------

    def _ask_canaries(self, now_s: float) -> None:
        for principle, canaries in self._source.canaries.items():
            fleet = self._crew.judges.get(principle)
            if fleet is None or now_s < self._next_round_s.get(principle, 0.0):
                continue
            settings = self._crew.panel.config.principles[principle]
            self._next_round_s[principle] = now_s + settings.canary_every_s
            call = CanaryCall(principle, fleet.name, canaries)
            _probe(fleet, call, settings.timeout_s, next(self._rounds))

    # ---- swaps --------------------------------------------------------------------------------

    def _prepare(self, request: SwapRequest) -> _Prepared:
        """In the thread: read and check everything, start services. Whatever this raises refuses
        the swap."""
        source = check_swap(self._source.config, request)
        kept = kept_principles(self._source, source)
        new = source.config.principles.keys() - kept
        return _Prepared(source, self._services.add(source.config, new, request.path), kept)

    def _step_preparing(
        self, request: SwapRequest, future: Future[_Prepared], now_s: float
    ) -> None:
        if not future.done():
            return
        self._preparing = None
        error = future.exception()
        if error is not None:
            self._refuse(request, _sentence(error))
            return
        prepared = future.result()
        config = prepared.config
        panel = self._crew.panel.changed(config, prepared.kept)
        fleets = {
            fleet: self._crew.verifier_fleet(fleet, principle, config.principles[principle])
            for principle, fleet in panel.fleets.items()
            if fleet not in self._crew.verifiers
        }
        deadline_s = now_s + WARM_UP_DEADLINE_S
        self._warm_up = _WarmUp(request, prepared.source, panel, deadline_s, fleets)

    def _step_warm_up(self, warm_up: _WarmUp, now_s: float) -> list[Event]:
        principles = {fleet: name for name, fleet in warm_up.panel.fleets.items()}
        for name, fleet in warm_up.fleets.items():
            for event in fleet.poll():
                fault = self._warmed(warm_up, principles[name], fleet, event)
                if fault is not None:
                    self._abandon(warm_up, f"{principles[name]}: {fault}")
                    return []
        if len(warm_up.versions) == len(warm_up.fleets):
            return self._take_over(warm_up)
        if now_s > warm_up.deadline_s:
            self._abandon(warm_up, f"not warmed up within {WARM_UP_DEADLINE_S:.0f} s")
        return []

    def _warmed(self, warm_up: _WarmUp, principle: str, fleet: Fleet, event: object) -> str | None:
        """What an event of a new fleet means: a reason to refuse the swap, or None."""
        settings = warm_up.panel.config.principles[principle]
        canaries = warm_up.source.canaries.get(principle, [])
        if isinstance(event, Lost | Exhausted):
            return event.reason
        if isinstance(event, Joined) and fleet.name not in warm_up.versions:
            said = f"{event.value.verifier} {event.value.verifier_version}"
            if not canaries:
                warm_up.versions[fleet.name] = said
            else:
                call = CanaryCall(principle, fleet.name, canaries, said)
                _probe(fleet, call, settings.timeout_s, next(self._rounds))
        elif isinstance(event, Reply):
            faults = _faults(canaries, event.value)
            if faults:
                return f"wrong on {len(faults)} of {len(canaries)} canaries: {faults[0]}"
            warm_up.versions[fleet.name] = event.context.said
        return None

    def _take_over(self, warm_up: _WarmUp) -> list[Event]:
        panel, crew = warm_up.panel, self._crew
        versions = {
            name: warm_up.versions.get(fleet) or crew.verifier_versions[name]
            for name, fleet in panel.fleets.items()
        }
        try:
            text = self._swaps.commit(warm_up.request, warm_up.source.config, panel, versions)
        except OSError as error:
            self._abandon(warm_up, _sentence(error))
            return []
        if text is None:
            self._abandon(warm_up, "it was withdrawn")
            return []
        crew.verifiers |= warm_up.fleets
        crew.panel = panel
        crew.verifier_versions = versions
        self._source = warm_up.source
        self._warm_up = None
        self._telemetry.panel_changed(panel, crew.verifier_versions, text)
        joined = [
            ActorJoined(name, actor, CALLS_PER_VERIFIER)
            for name, fleet in warm_up.fleets.items()
            for actor in fleet.ready
        ]
        return [PanelChanged(panel), *joined]

    def _abandon(self, warm_up: _WarmUp, reason: str) -> None:
        for fleet in warm_up.fleets.values():
            fleet.close()
        self._warm_up = None
        self._refuse(warm_up.request, reason)

    def _refuse(self, request: SwapRequest, reason: str) -> None:
        text = f"swap {request.number} is refused: {reason}"
        try:
            self._swaps.refuse(request, reason)
        except OSError as error:  # the asker will withdraw it
            text += f" (the answer cannot be written: {error})"
            self._unanswered.add(request.number)
        self._telemetry.alert("principles", text)


def require_right_canaries(crew: Crew, canaries: Mapping[str, Sequence[Canary]]) -> None:
    """Ask the first panel, before anything is trained. Raises ``VerifierUnavailableError``."""
    for principle, known in canaries.items():
        fleet = crew.judges[principle]
        timeout_s = crew.panel.config.principles[principle].timeout_s
        _probe(fleet, CanaryCall(principle, fleet.name, known), timeout_s, first_round())
        while (value := _answer(fleet)) is None:
            time.sleep(WAIT_S)
        require_right(principle, known, value)


def _answer(fleet: Fleet) -> tuple[Verdict, ...] | None:
    for event in fleet.poll():
        if isinstance(event, Lost | Exhausted):
            raise VerifierUnavailableError(f"{fleet.name} is lost at its canaries: {event.reason}")
        if isinstance(event, Reply):
            return event.value if isinstance(event.value, tuple) else ()
    return None


def _probe(fleet: Fleet, call: CanaryCall, timeout_s: float, number: int) -> None:
    actor = fleet.least_busy()
    if actor is not None:
        requests = requests_of(call.canaries, number)
        fleet.call(
            actor, "probe", {"requests": requests}, context=call, deadline_s=timeout_s + GRACE_S
        )


def _sentence(error: BaseException) -> str:
    known = isinstance(error, SafeladderError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _faults(canaries: Sequence[Canary], value: object) -> list[str]:
    if not isinstance(value, tuple):
        return [f"no answer: {value}"]
    return faults_of(canaries, value)
