"""The engines of the rollout fleet as the coordinator sees them: version, slots, weight loads.

Owns which engine gets the next lease and which must load. Does not know what is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from safeladder.records import GroupKey

LOAD_CALL_S = 600.0
"""Longest publication, load of weights or pricing of a group, as the shell's calls have it."""
LOAD_DEADLINE_S = LOAD_CALL_S + 60
"""A load that was not answered by then is asked for again."""
LOAD_RETRY_S = 5.0
"""Pause after a load that left the engine on an older version."""


@dataclass(slots=True)
class Engine:
    """One engine."""

    name: str
    capacity: int
    served: int | None = None
    """None until it says so for the first time."""
    leases: set[GroupKey] = field(default_factory=set)
    loading: int | None = None
    """Version that it was asked to load, until it answers."""
    next_load_s: float = 0.0
    """No load is asked for before this time."""

    @property
    def num_free(self) -> int:
        return self.capacity - len(self.leases)


class EngineTable:
    """All living engines, by name."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    @property
    def all(self) -> tuple[Engine, ...]:
        return tuple(self._engines.values())

    def join(self, name: str, capacity: int) -> list[GroupKey]:
        """Count an engine in. Returns the leases of an engine of that name that was never reported
        lost."""
        orphans = self.lose(name)
        self._engines[name] = Engine(name, capacity)
        return orphans

    def lose(self, name: str) -> list[GroupKey]:
        """Count an engine out and return its leases, in order of key."""
        engine = self._engines.pop(name, None)
        return [] if engine is None else sorted(engine.leases)

    def grant(self, name: str, key: GroupKey) -> None:
        """Take a slot."""
        self._engines[name].leases.add(key)

    def free(self, name: str, key: GroupKey) -> None:
        """Give the slot back, if the engine is still there."""
        if (engine := self._engines.get(name)) is not None:
            engine.leases.discard(key)

    def next_free(self, num_leased: int, limit: Callable[[int], int]) -> Engine | None:
        """The engine with the most free slots among those whose served version admits one more
        group after ``num_leased``; None if there is none."""
        ready = [e for e in self._engines.values() if e.served is not None and e.num_free > 0]
        newest = max((e.served for e in ready if e.served is not None), default=None)
        if newest is None or num_leased >= limit(newest):
            return None
        admitted = (e for e in ready if e.served is not None and num_leased < limit(e.served))
        return max(admitted, key=lambda engine: engine.num_free)

    def serving(self, name: str, version: int, now_s: float) -> int | None:
        """Note what an engine serves. Returns the version it was asked for if it fell short."""
        engine = self._engines.get(name)
        if engine is None:
            return None
        asked, engine.loading, engine.served = engine.loading, None, version
        if asked is None or version >= asked:
            engine.next_load_s = now_s
            return None
        engine.next_load_s = now_s + LOAD_RETRY_S
        return asked

    def start_loads(self, newest: int, now_s: float) -> list[str]:
        """Names of the engines that must load ``newest`` now; each is asked once until it answers
        or its deadline passes."""
        due = [
            engine
            for engine in self._engines.values()
            if engine.served is not None and engine.served < newest and engine.next_load_s <= now_s
        ]
        for engine in due:
            engine.loading = newest
            engine.next_load_s = now_s + LOAD_DEADLINE_S
        return [engine.name for engine in due]
