"""Calls to one fleet of verifiers or references: who waits for a slot, who is out, until when.

Owns capacity and deadlines. Does not know what a call means, nor which actor takes it: the shell
picks one. A call that is out keeps its slot until it is answered or overdue, even if its group is
gone meanwhile, because the actor is still at work on it.
"""

from __future__ import annotations

from typing import NamedTuple

from safeladder.records import GroupKey


class CallId(NamedTuple):
    """One try of one call. ``call`` counts from 1 within (group, attempt, fleet)."""

    key: GroupKey
    attempt: int
    call: int


class CallQueue:
    """First come, first served, up to the sum of the actors' capacities."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._capacities: dict[str, int] = {}
        self._num_slots = 0
        """Their sum."""
        self._waiting: dict[CallId, None] = {}
        self._out: dict[CallId, float] = {}
        """Call → deadline. All last equally long, so this is in order of deadline too."""

    @property
    def num_actors(self) -> int:
        return len(self._capacities)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_out(self) -> int:
        return len(self._out)

    def join(self, actor: str, capacity: int) -> None:
        """Count an actor in."""
        self._capacities[actor] = capacity
        self._num_slots = sum(self._capacities.values())

    def lose(self, actor: str) -> list[CallId]:
        """Count an actor out. The calls that are certainly lost: all, if it was the last one."""
        self._num_slots -= self._capacities.pop(actor, 0)
        if self._capacities:
            return []
        lost = list(self._out)
        self._out.clear()
        return lost

    def ask(self, call: CallId) -> None:
        """Let a call wait for a slot."""
        self._waiting[call] = None

    def withdraw(self, call: CallId) -> None:
        """Its group is gone: a waiting call need not go out."""
        self._waiting.pop(call, None)

    def start(self, now_s: float) -> list[CallId]:
        """The waiting calls that go out now, oldest first."""
        started = []
        while self._waiting and len(self._out) < self._num_slots:
            call = next(iter(self._waiting))
            del self._waiting[call]
            self._out[call] = now_s + self._deadline_s
            started.append(call)
        return started

    def settle(self, call: CallId) -> bool:
        """Free a call's slot. False if it is not out: a late or repeated answer."""
        return self._out.pop(call, None) is not None

    def expire(self, now_s: float) -> list[CallId]:
        """The overdue calls; their slots are free again."""
        overdue = []
        for call, deadline in self._out.items():
            if deadline > now_s:
                break
            overdue.append(call)
        for call in overdue:
            del self._out[call]
        return overdue
