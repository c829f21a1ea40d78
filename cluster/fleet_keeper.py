"""Keeps the rollout fleets of a live run: their size, engines that leave, and their profiles.

::

    fleets/1.yaml ─▶ more engines: spawned, they join as the cluster has room
                  └▶ fewer: EngineLeaving ─▶ its groups go on elsewhere ─▶ no lease left ─▶ ended

What an engine held when it was asked to leave is no failure and no loss; only an engine that dies
on the way costs its groups an attempt. ``profiles.json`` has what each engine measured::

    {"rollout-h100": {"rollout-h100-0": {"kv_tokens": …, "max_sequences": …,
                                         "speeds": [[sequences, tokens/s], …],
                                         "link_bytes_per_s": … or null}}}
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from cluster.coordinator import Coordinator
from cluster.coordinator_status import EngineStatus
from cluster.profile_file import write_profiles
from cluster.protocol import ROLLOUT, ActorLost, EngineLeaving, EngineReported, Event
from cluster.requests import IN_FORCE, REFUSED, Request, Requests
from cluster.rollout_fleets import RolloutFleets
from cluster.run_directory import RunDirectory
from cluster.telemetry import Telemetry
from safeladder.engine_profile import EngineProfile
from safeladder.errors import ConfigError
from safeladder.fleet_config import fleet_of

LOOK_EVERY_S = 0.5
FOLDER = "fleets"
MAX_ACTORS = 100_000
MAX_DIGITS = 9


class FleetKeeper:
    """One for each execution of a run; ``step`` once in every turn of the loop."""

    def __init__(
        self,
        rollout: RolloutFleets,
        run: RunDirectory,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rollout = rollout
        self._requests = Requests(run, FOLDER)
        self._file = run.profiles
        self._telemetry = telemetry
        self._clock = clock
        self._next_look_s = 0.0
        self._leaving: set[str] = set()
        self._profiles: defaultdict[str, dict[str, EngineProfile]] = defaultdict(dict)

    def step(self, coordinator: Coordinator) -> list[Event]:
        """Pass on what engines say of themselves, obey a request, and end the engines that have
        nothing left to do."""
        now_s = self._clock()
        if now_s < self._next_look_s:
            return []
        self._next_look_s = now_s + LOOK_EVERY_S
        events = self._take_beats(now_s)
        if self._leaving:
            events += self._end_idle(coordinator)
        if (request := self._requests.next_request()) is not None:
            events += self._obey(request)
        return events

    def _take_beats(self, now_s: float) -> list[Event]:
        beats = self._rollout.take_beats()
        is_new = False
        for engine, said in beats.items():
            self._telemetry.usage.beat(engine, said, now_s)
            profiles = self._profiles[fleet_of(engine)]
            if said.profile is not None and said.profile != profiles.get(engine):
                profiles[engine] = said.profile
                is_new = True
        if is_new:
            write_profiles(self._file, self._profiles)
        return [
            EngineReported(engine, said.load)
            for engine, said in beats.items()
            if said.load is not None
        ]

    def _end_idle(self, coordinator: Coordinator) -> list[Event]:
        engines = {engine.name: engine for engine in coordinator.status().engines}
        self._leaving &= engines.keys()  # one that died was told as lost
        idle = [name for name in sorted(self._leaving) if _is_done(engines[name])]
        for name in idle:
            self._rollout.dismiss(name)
            self._telemetry.alert("fleets", f"{name} has left")
        self._leaving.difference_update(idle)
        return [ActorLost(ROLLOUT, name) for name in idle]

    def _obey(self, request: Request) -> list[Event]:
        try:
            wanted = wanted_sizes(request.path.read_text(encoding="utf-8"), self._rollout.sizes)
        except (ConfigError, OSError) as error:
            self._requests.answer(request, REFUSED, f"request {request.number}: {error}")
            return []
        before = self._rollout.sizes
        text = ", ".join(f"{name} {before[name]} → {size}" for name, size in wanted.items())
        text = f"request {request.number}: {text}; engines join as the cluster has room"
        if not self._requests.answer(request, IN_FORCE, text):
            return []  # withdrawn
        self._telemetry.alert("fleets", text)
        leaving = [
            engine
            for name, size in wanted.items()
            for engine in self._rollout.fleets[name].resize(size)
        ]
        self._leaving.update(leaving)
        return [EngineLeaving(engine) for engine in leaving]


def wanted_sizes(text: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Fleet → engines that a request asks for; ``sizes`` are those there are. A fleet may be named
    by its key in the config. Raises ``ConfigError``."""
    try:
        asked = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"no YAML: {error}") from None
    if not isinstance(asked, dict) or not asked:
        raise ConfigError("it names no fleet; write `fleet: engines`")
    wanted = {}
    for key, size in asked.items():
        name = key if key in sizes else f"rollout-{key}"
        if name not in sizes:
            keys = ", ".join(fleet.removeprefix("rollout-") for fleet in sizes)
            raise ConfigError(f"there is no fleet {key!r}; the run has {keys}")
        if type(size) is not int or not 0 <= size <= MAX_ACTORS:
            raise ConfigError(f"{key}: {size!r} is no number of engines")
        wanted[name] = size
    if not sum({**sizes, **wanted}.values()):
        raise ConfigError("no engine would be left in the run; leave one in some fleet")
    return wanted


def resize_fleets(run_dir: Path, sizes: Mapping[str, int], wait_s: float) -> str:
    """What the verb ``fleets --set`` does: ask, wait, and return the driver's sentence.

    Raises ``ConfigError`` if the run refuses, ``EnvironmentUnfitError`` if no driver answers.
    """
    requests = Requests(RunDirectory.open(run_dir), FOLDER)
    request = requests.submit(yaml.safe_dump(dict(sizes)))
    answer = requests.await_answer(request, wait_s)
    if answer["state"] != IN_FORCE:
        raise ConfigError(f"the run refuses, nothing changed: {answer['text']}")
    return str(answer["text"])


def parse_sizes(settings: list[str]) -> dict[str, int]:
    """``h100=6`` and the like. Raises ``ConfigError``."""
    sizes = {}
    for setting in settings:
        name, _, number = setting.partition("=")
        is_number = number.isascii() and number.isdecimal() and len(number) <= MAX_DIGITS
        if not name or not is_number:
            raise ConfigError(f"--set {setting}: write fleet=engines, such as h100=6")
        sizes[name] = int(number)
    return sizes


def _is_done(engine: EngineStatus) -> bool:
    is_loading = engine.loading is not None or engine.served_version is None
    return engine.is_leaving and not engine.leases and not is_loading
