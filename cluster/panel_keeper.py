"""Keeps the panel of a live run: hot swaps of principles, and canaries.

::

    swaps/1.yaml ─▶ checked, services up ─▶ new fleets up ─▶ their canaries right ─▶ in force
                              └───────────────────┴──────────────────┴──▶ refused, nothing changed

The new panel takes over at a group boundary (see ``panel``); ``swaps/1.json`` says how it went, and
the configuration in force is written to ``config.yaml``, which ``resume`` reads. Training goes on
all the while: what takes time happens in a thread or in the new actors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from cluster.canaries import Canary, faults_of, load_canaries
from cluster.crew import Crew
from cluster.fleet import Exhausted, Fleet, Joined, Lost, Reply
from cluster.panel import Panel
from cluster.protocol import ActorJoined, Event, PanelChanged
from cluster.services import VerifierServices
from cluster.swaps import SwapRequest, Swaps, check_swap, kept_principles
from cluster.telemetry import Telemetry
from safeladder.config import Config
from safeladder.errors import SafeladderError

LOOK_EVERY_S = 1.0
CALLS_PER_VERIFIER = 8
WARM_UP_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class CanaryCall:
    """Context of a round of canaries of one principle."""

    principle: str
    fleet: str


@dataclass(slots=True)
class _WarmUp:
    """A swap whose new fleets are coming up."""

    request: SwapRequest
    panel: Panel
    deadline_s: float
    fleets: dict[str, Fleet]
    """Name → new fleet."""
    versions: dict[str, str] = field(default_factory=dict)
    """Fleet → verifier and version, once one actor is up and its canaries are right."""


class PanelKeeper:
    """One for each execution of a run; ``step`` once in every turn of the loop. ``config`` is the
    run's as it was asked for, before services had addresses."""

    def __init__(
        self, config: Config, crew: Crew, swaps: Swaps, services: VerifierServices,
        telemetry: Telemetry,
    ) -> None:  # fmt: skip
        self._asked = config
        self._crew = crew
        self._swaps = swaps
        self._services = services
        self._telemetry = telemetry
        self._worker = ThreadPoolExecutor(1, "swap")  # services die with the thread that made them
        self._preparing: tuple[SwapRequest, Future[Config]] | None = None
        self._warm_up: _WarmUp | None = None
        self._next_look_s = 0.0
        self._canaries = canaries_of(config)
        self._next_round_s = dict.fromkeys(self._canaries, 0.0)

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
            if request is not None:
                self._telemetry.alert("principles", f"swap {request.number} was asked for")
                future = self._worker.submit(self._prepare, request)
                self._preparing = request, future
        return []

    def take(self, call: CanaryCall, value: object) -> None:
        """The answer to a round of canaries."""
        faults = _faults(self._canaries.get(call.principle, []), value)
        self._telemetry.canaries(call.principle, len(faults))
        if faults:
            self._telemetry.alert("canary", f"{call.principle} drifts: {'; '.join(faults[:3])}")

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    # ---- canaries -----------------------------------------------------------------------------

    def _ask_canaries(self, now_s: float) -> None:
        for principle, canaries in self._canaries.items():
            fleet = self._crew.judges.get(principle)
            if fleet is None or now_s < self._next_round_s.get(principle, 0.0):
                continue
            settings = self._crew.panel.config.principles[principle]
            self._next_round_s[principle] = now_s + settings.canary_every_s
            _probe(fleet, principle, canaries, settings.timeout_s)

    # ---- swaps --------------------------------------------------------------------------------

    def _prepare(self, request: SwapRequest) -> Config:
        """In the thread: check everything, start services. Raises ``SafeladderError``."""
        config = check_swap(self._asked, request)
        canaries_of(config)
        new = config.principles.keys() - kept_principles(self._asked, config)
        return self._services.add(config, new, request.path)

    def _step_preparing(self, request: SwapRequest, future: Future[Config], now_s: float) -> None:
        if not future.done():
            return
        self._preparing = None
        try:
            config = future.result()
            panel = self._crew.panel.changed(config, kept_principles(self._asked, request.config()))
        except (SafeladderError, OSError, ValueError) as error:
            self._refuse(request, str(error))
            return
        fleets = {
            fleet: self._crew.verifier_fleet(fleet, principle, config.principles[principle])
            for principle, fleet in panel.fleets.items()
            if fleet not in self._crew.verifiers
        }
        self._warm_up = _WarmUp(request, panel, now_s + WARM_UP_DEADLINE_S, fleets)

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
        canaries = _load(settings.canaries, warm_up.panel.config)
        if isinstance(event, Lost | Exhausted):
            return event.reason
        if isinstance(event, Joined) and fleet.name not in warm_up.versions:
            said = f"{event.value.verifier} {event.value.verifier_version}"
            if not canaries:
                warm_up.versions[fleet.name] = said
            else:
                _probe(fleet, principle, canaries, settings.timeout_s, said)
        elif isinstance(event, Reply):
            faults = _faults(canaries, event.value)
            if faults:
                return f"wrong on {len(faults)} of {len(canaries)} canaries: {faults[0]}"
            warm_up.versions[fleet.name] = event.context
        return None

    def _take_over(self, warm_up: _WarmUp) -> list[Event]:
        panel, crew = warm_up.panel, self._crew
        crew.verifiers |= warm_up.fleets
        crew.panel = panel
        crew.verifier_versions = {
            name: warm_up.versions.get(fleet) or crew.verifier_versions[name]
            for name, fleet in panel.fleets.items()
        }
        self._asked = warm_up.request.config()
        self._canaries = canaries_of(panel.config)
        self._warm_up = None
        text = self._swaps.commit(warm_up.request, panel, crew.verifier_versions)
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
        self._swaps.refuse(request, reason)
        self._telemetry.alert("principles", f"swap {request.number} is refused: {reason}")


def canaries_of(config: Config) -> dict[str, list[Canary]]:
    """Principle → its canaries, for those that have some. Raises ``DataError``."""
    return {
        name: _load(settings.canaries, config)
        for name, settings in config.principles.items()
        if settings.canaries is not None
    }


def _load(path: Path | None, config: Config) -> list[Canary]:
    return [] if path is None else load_canaries(path, config.routes)


def _probe(
    fleet: Fleet, principle: str, canaries: Sequence[Canary], timeout_s: float,
    context: object = None,
) -> None:  # fmt: skip
    actor = fleet.least_busy()
    if actor is not None:
        requests = [canary.request for canary in canaries]
        call = CanaryCall(principle, fleet.name) if context is None else context
        fleet.call(
            actor, "probe", {"requests": requests}, context=call, deadline_s=timeout_s + 30.0
        )


def _faults(canaries: Sequence[Canary], value: object) -> list[str]:
    if not isinstance(value, tuple):
        return [f"no answer: {value}"]
    return faults_of(canaries, value)
