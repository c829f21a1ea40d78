"""The engines of all rollout fleets as the coordinator sees them: version, groups, weight loads.

Owns which engine gets the next lease and which must load. Does not know what is generated.

The next lease goes to the engine that is expected to finish it first: by its measured speed with
one more group, among those whose served version admits it. Every question costs the logarithm of
the number of engines: engines with room lie in one heap for each served version, and an entry that
is no longer true is passed over when it comes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.group_limit import GroupLimit
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.records import GroupKey

LOAD_CALL_S = 600.0
"""Longest publication, load of weights or pricing of a group, as the shell's calls have it."""
LOAD_DEADLINE_S = LOAD_CALL_S + 60
"""A load that was not answered by then is asked for again."""
LOAD_RETRY_S = 5.0
"""Pause after a load that left the engine on an older version."""
MAX_SHORT_LOADS = 240
"""An engine that fell short so often in a row, which takes at least 20 minutes, will not load that
version any more. By then an engine that was being replaced is there, too."""


_Place = tuple[float, int, int, str]
"""In a line of engines: (seconds per token, number, stamp, name)."""


@dataclass(slots=True)
class Engine:
    """One engine."""

    name: str
    number: int
    """In order of joining."""
    group_size: int
    limit: GroupLimit
    profile: EngineProfile | None = None
    served: int | None = None
    """None until it says so for the first time."""
    leases: set[GroupKey] = field(default_factory=set)
    load: EngineLoad | None = None
    """Its newest report."""
    loading: int | None = None
    """Version that it was asked to load, until it answers."""
    next_load_s: float = 0.0
    """No load is asked for before this time."""
    num_short: int = 0
    """Loads in a row that left it on an older version."""
    is_leaving: bool = False
    """It gets no more leases and no more weights."""
    stamp: int = 0
    """Rises with every change of its place in line."""

    @property
    def capacity(self) -> int:
        """Groups that it may hold now."""
        return self.limit.value

    @property
    def num_free(self) -> int:
        """Below 0 while it holds more than it may."""
        return self.capacity - len(self.leases)

    @property
    def seconds_per_token(self) -> float:
        """Expected time from one token of a sequence to its next, with one more group."""
        return self.seconds_with(len(self.leases) + 1)

    def seconds_with(self, num_groups: int) -> float:
        """The same with so many groups. Engines that did not measure themselves count as equally
        fast, one token a second in all."""
        sequences = num_groups * self.group_size
        speed = self.profile.tokens_per_s(sequences) if self.profile is not None else None
        return sequences / (speed or 1.0)


class EngineTable:
    """All living engines, by name. ``group_size`` is the number of siblings."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._engines: dict[str, Engine] = {}
        self._num_joined = 0
        self._lines: dict[int, list[_Place]] = {}
        """Served version → heap of the engines with room."""
        self._behind: list[tuple[float, int, str]] = []
        """Heap of (time, number, name): engines to be asked for a load, not before that time."""
        self._newest = 0
        """Version that engines were last asked to load."""

    @property
    def all(self) -> tuple[Engine, ...]:
        return tuple(self._engines.values())

    def get(self, name: str) -> Engine | None:
        """The engine, if it lives."""
        return self._engines.get(name)

    def join(
        self, name: str, cap: int | None, profile: EngineProfile | None, group_tokens: float
    ) -> list[GroupKey]:
        """Count an engine in. Returns the leases of an engine of that name that was never reported
        lost."""
        orphans = self.lose(name)
        self._num_joined += 1
        limit = GroupLimit(cap, profile, self._group_size, group_tokens)
        self._engines[name] = Engine(
            name, self._num_joined, self._group_size, limit, profile=profile
        )
        return orphans

    def lose(self, name: str) -> list[GroupKey]:
        """Count an engine out and return its leases, in order of key."""
        engine = self._engines.pop(name, None)
        return [] if engine is None else sorted(engine.leases)

    def grant(self, name: str, key: GroupKey) -> None:
        """Take a slot."""
        engine = self._engines[name]
        engine.leases.add(key)
        self._line_up(engine)

    def free(self, name: str, key: GroupKey) -> None:
        """Give the slot back, if the engine is still there."""
        if (engine := self._engines.get(name)) is not None:
            engine.leases.discard(key)
            self._line_up(engine)

    def finish(self, name: str, key: GroupKey) -> None:
        """Give the slot back: the group is generated."""
        if (engine := self._engines.get(name)) is not None:
            engine.limit.finished(len(engine.leases))
            self.free(name, key)

    def note_load(self, name: str, load: EngineLoad) -> None:
        """An engine says how full it is."""
        if (engine := self._engines.get(name)) is not None:
            before, engine.load = engine.capacity, load
            engine.limit.note(load, len(engine.leases))
            if engine.capacity != before:
                self._line_up(engine)

    def next_free(
        self, num_leased: int, limit: Callable[[int], int], avoid: str | None = None
    ) -> Engine | None:
        """The engine that would finish one more group first, among those with a free slot whose
        served version admits it after ``num_leased``; of equals, the one with the newest version.
        ``avoid`` only if there is no other. None if there is none."""
        best: _Place | None = None
        for version in sorted(self._lines, reverse=True):
            if num_leased >= limit(version):
                break
            first = self._first(version, avoid)
            if first is not None and (best is None or _rank(first, avoid) < _rank(best, avoid)):
                best = first
        return None if best is None else self._engines[best[3]]

    @property
    def is_stuck(self) -> bool:
        """Whether no engine that stays can load what it is asked to."""
        staying = [engine for engine in self._engines.values() if not engine.is_leaving]
        return bool(staying) and all(e.num_short >= MAX_SHORT_LOADS for e in staying)

    def num_free_beside(self, name: str) -> int:
        """Free slots of all engines in which a group of this one would be no slower, for all that
        profiles tell."""
        here = self._engines.get(name)
        if here is None:
            return 0
        here_s = here.seconds_with(len(here.leases))
        return sum(
            max(0, engine.num_free)
            for engine in self._engines.values()
            if engine is not here and engine.served is not None and not engine.is_leaving
            if engine.seconds_per_token <= here_s
        )

    def leave(self, name: str) -> list[GroupKey]:
        """Give an engine nothing more. Returns its leases, in order of key."""
        if (engine := self._engines.get(name)) is None:
            return []
        engine.is_leaving = True
        self._line_up(engine)
        return sorted(engine.leases)

    def serving(
        self, name: str, version: int, now_s: float, profile: EngineProfile | None = None
    ) -> int | None:
        """Note what an engine serves. Returns the version it was asked for if it fell short."""
        engine = self._engines.get(name)
        if engine is None:
            return None
        engine.profile = profile or engine.profile
        asked, engine.loading, engine.served = engine.loading, None, version
        fell_short = asked is not None and version < asked
        engine.num_short = engine.num_short + 1 if fell_short else 0
        engine.next_load_s = now_s + (LOAD_RETRY_S if fell_short else 0.0)
        self._line_up(engine)
        self._expect_load(engine)
        return asked if fell_short else None

    def start_loads(self, newest: int, now_s: float) -> list[str]:
        """Names of the engines that must load ``newest`` now; each is asked once until it answers
        or its deadline passes."""
        if newest > self._newest:
            self._newest = newest
            for engine in self._engines.values():
                self._expect_load(engine)
        due = {}
        while self._behind and self._behind[0][0] <= now_s:
            at_s, number, name = heapq.heappop(self._behind)
            behind = self._engines.get(name)
            if behind is None or (behind.number, behind.next_load_s) != (number, at_s):
                continue  # it was lost, or answered meanwhile
            if self._is_behind(behind):
                due[number] = behind
        for _, engine in sorted(due.items()):
            engine.loading = newest
            engine.next_load_s = now_s + LOAD_DEADLINE_S
            self._expect_load(engine)
        return [engine.name for _, engine in sorted(due.items())]

    def _is_behind(self, engine: Engine) -> bool:
        is_old = engine.served is not None and engine.served < self._newest
        return is_old and not engine.is_leaving

    def _expect_load(self, engine: Engine) -> None:
        if self._is_behind(engine):
            heapq.heappush(self._behind, (engine.next_load_s, engine.number, engine.name))

    def _line_up(self, engine: Engine) -> None:
        """The engine's place in line, anew; older entries of it are no longer true."""
        engine.stamp += 1
        if engine.served is None or engine.num_free <= 0 or engine.is_leaving:
            return
        line = self._lines.setdefault(engine.served, [])
        heapq.heappush(line, (engine.seconds_per_token, engine.number, engine.stamp, engine.name))
        if len(line) > 64 + 4 * len(self._engines):  # mostly entries that are no longer true
            line[:] = filter(self._is_true, line)
            heapq.heapify(line)

    def _first(self, version: int, avoid: str | None) -> _Place | None:
        """First in line; ``avoid`` only if nobody stands behind it."""
        line = self._lines[version]
        avoided: _Place | None = None
        while line and (line[0][3] == avoid or not self._is_true(line[0])):
            place = heapq.heappop(line)
            if self._is_true(place):
                avoided = place
        first = line[0] if line else avoided
        if avoided is not None:
            heapq.heappush(line, avoided)
        if not line and version < self._newest:
            del self._lines[version]
        return first

    def _is_true(self, entry: _Place) -> bool:
        engine = self._engines.get(entry[3])
        return engine is not None and (engine.number, engine.stamp) == entry[1:3]


def _rank(place: _Place, avoid: str | None) -> tuple[bool, float]:
    return place[3] == avoid, place[0]
