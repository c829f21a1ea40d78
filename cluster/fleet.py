"""A fleet of equal actors behind RLlib's ``FaultTolerantActorManager``, as a typed wrapper.

Owns: which actors of a role are alive, which calls are open, their deadlines, and replacement of
the dead within a budget. Does not know what the calls mean: a reply carries back the caller's own
context. The coordinator's lease table, not this class, decides what was in flight.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from cluster.remote import RoleFailure, kill
from safeladder.commit_points import reached_for

log = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 2.0
HEARTBEAT_DEADLINE_S = 120.0
RESTART_WINDOW_S = 600.0
MAX_RESTARTS_IN_WINDOW = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """An actor answered its ``start`` call and takes work."""

    actor: str
    value: Any
    """What ``start`` returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """An actor's process is gone, or silent past its heartbeat; its open calls will not answer."""

    actor: str
    reason: str
    contexts: tuple[Any, ...]
    """Contexts of the calls that died with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to one call. ``value`` is a ``RoleFailure`` if the role raised."""

    actor: str
    context: Any
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausted:
    """The fleet spent its restart budget and has no actor left."""

    reason: str


FleetEvent = Joined | Lost | Reply | Exhausted


@dataclass(slots=True)
class _Call:
    actor: str
    context: Any
    deadline: float


@dataclass(slots=True)
class _Member:
    name: str
    manager_id: int
    handle: Any
    last_beat: float
    is_patient: bool = False
    """Whether it may wait for room in the cluster as long as that takes."""
    is_ready: bool = False
    heartbeat_open: bool = False
    said: Any = None
    """Its newest answer to ``start`` or a heartbeat."""


class Fleet:
    """``size`` actors named ``<name>-0``, ``<name>-1``, …; a replacement gets the next number.

    All but ``num_needed`` of them may wait without end for room in the cluster, and start as soon
    as there is some; ``start_deadline_s`` counts from then. By default all are needed.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[str], Any],
        *,
        size: int,
        start_deadline_s: float,
        num_needed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._spawn = spawn
        self._start_deadline_s = start_deadline_s
        self._clock = clock
        self._manager = FaultTolerantActorManager(max_remote_requests_in_flight_per_actor=1_000_000)
        self._members: dict[str, _Member] = {}
        self._calls: dict[str, _Call] = {}
        self._expired: dict[str, str] = {}
        """Tag of a call that overran its deadline → actor. Its answer is dropped, but an error
        still means that the process is gone, and Ray's manager tells that only once."""
        self._tags = (str(i) for i in itertools.count())
        self._numbers = itertools.count()
        self._restarts: deque[float] = deque()
        self._pending: list[FleetEvent] = []
        self._beats: dict[str, Any] = {}
        self._size = size
        self._leaving: set[str] = set()
        self._num_needed = size if num_needed is None else num_needed
        for _ in range(size):
            self._add()

    @property
    def size(self) -> int:
        """Actors that it is to have."""
        return self._size

    @property
    def ready(self) -> list[str]:
        """Names of the actors that take work."""
        return [m.name for m in self._members.values() if m.is_ready]

    @property
    def members(self) -> list[str]:
        """Names of all living actors, those still starting included."""
        return list(self._members)

    def said(self, actor: str) -> Any:
        """What a ready actor said last of itself: at its start, or to a heartbeat."""
        return self._members[actor].said

    def take_beats(self) -> dict[str, Any]:
        """Actor → its newest answer to a heartbeat, for those that came since the last call."""
        beats, self._beats = self._beats, {}
        return beats

    def num_open(self, actor: str) -> int:
        """Calls to an actor that are not answered."""
        return sum(call.actor == actor for call in self._calls.values())

    def least_busy(self, among: Collection[str] | None = None) -> str | None:
        """The ready actor, one of ``among`` if that is given, with the fewest open calls, or
        None."""
        open_calls = Counter(call.actor for call in self._calls.values())
        ready = [name for name in self.ready if among is None or name in among]
        return min(ready, key=lambda name: open_calls[name], default=None)

    def call(
        self,
        actor: str,
        method: str,
        arguments: Mapping[str, Any],
        *,
        context: Any,
        deadline_s: float,
    ) -> bool:
        """Send one call. False if the actor is gone: then no reply will come. If the actor was
        alive until now, ``Lost`` follows."""
        member = self._members.get(actor)
        if member is None:
            return False
        tag = next(self._tags)
        reached_for([method], "asked", actor)
        sent: int = self._manager.foreach_actor_async(
            "call",
            tag=tag,
            kwargs={"method": method, "arguments": dict(arguments)},
            remote_actor_ids=[member.manager_id],
        )
        reached_for([method], "sent", actor)
        if sent == 1:
            self._calls[tag] = _Call(actor, context, self._clock() + deadline_s)
        else:  # the manager knows it to be dead
            self.retire(actor, "it takes no more calls")
        return sent == 1

    def poll(self) -> list[FleetEvent]:
        """Everything that happened since the last poll; never waits."""
        events, self._pending = self._pending, []
        now = self._clock()
        for result in self._manager.fetch_ready_async_reqs(timeout_seconds=0.0):
            call = self._calls.pop(result.tag, None)
            actor = self._expired.pop(result.tag, "") if call is None else call.actor
            member = self._members.get(actor)
            if member is None:
                continue
            if not result.ok:
                events += self._lose(actor, _first_line(result.get()))
                continue
            if call is not None:
                events += self._answer(member, call.context, result.get())
        events += self._expire(now)
        self._heartbeat(now)
        return events

    def resize(self, size: int) -> list[str]:
        """Have so many actors. New ones start as the cluster has room; of too many, those that are
        not up yet end now, and the names of the others, newest first, are returned: each is to be
        ended by ``dismiss`` when it has nothing left to do, and is not replaced if it dies."""
        self._size = size
        for member in [m for m in reversed(self._members.values()) if not m.is_ready]:
            if self._num_staying > size:
                self._lose(member.name, "the fleet is smaller now")
        staying = [m.name for m in self._members.values() if m.name not in self._leaving]
        leaving = staying[size:][::-1]
        self._leaving.update(leaving)
        while self._num_staying < size:
            self._add()
        return leaving

    def dismiss(self, actor: str) -> tuple[Any, ...]:
        """End an actor that leaves. Returns the contexts of the calls that end with it."""
        self._leaving.add(actor)
        lost = [e for e in self._lose(actor, "it leaves") if isinstance(e, Lost)]
        return lost[0].contexts if lost else ()

    @property
    def _num_staying(self) -> int:
        return len(self._members) - len(self._leaving)

    def retire(self, actor: str, reason: str) -> None:
        """End an actor that is alive but of no use (hung, poisoned); a replacement starts."""
        self._pending += self._lose(actor, reason)

    def close(self) -> None:
        """End all actors at once. Roles that must say goodbye are called before."""
        for member in self._members.values():
            kill(member.handle)
        self._members.clear()
        self._calls.clear()
        self._manager.clear()

    def _add(self) -> None:
        name = f"{self.name}-{next(self._numbers)}"
        is_patient = sum(not m.is_patient for m in self._members.values()) >= self._num_needed
        handle = self._spawn(name)
        before = set(self._manager.actor_ids())
        self._manager.add_actors([handle])
        (manager_id,) = set(self._manager.actor_ids()) - before
        self._members[name] = _Member(name, manager_id, handle, self._clock(), is_patient)
        if is_patient:  # it answers once its process is there
            self.call(name, "status", {}, context=_PLACED, deadline_s=math.inf)
        else:
            self._start(name)

    def _start(self, name: str) -> None:
        self.call(name, "start", {}, context=_START, deadline_s=self._start_deadline_s)

    def _answer(self, member: _Member, context: Any, value: Any) -> list[FleetEvent]:
        if context is _HEARTBEAT:
            member.heartbeat_open = False
            if getattr(value, "is_dead", False):
                return self._lose(member.name, value.failure or "its engine is dead")
            if not isinstance(value, RoleFailure):
                member.said = self._beats[member.name] = value
            return []
        if context is _PLACED:
            self._start(member.name)
            return []
        if context is _START:
            if isinstance(value, RoleFailure):
                log.error("%s did not start: %s", member.name, value.detail)
                return self._lose(member.name, f"start failed: {value.kind}: {value.message}")
            member.is_ready, member.said = True, value
            return [Joined(actor=member.name, value=value)]
        return [Reply(actor=member.name, context=context, value=value)]

    def _lose(self, actor: str, reason: str) -> list[FleetEvent]:
        member = self._members.pop(actor, None)
        if member is None:
            return []
        dead = [tag for tag, call in self._calls.items() if call.actor == actor]
        contexts = tuple(
            call.context for call in map(self._calls.pop, dead) if call.context not in _OURS
        )
        self._expired = {tag: name for tag, name in self._expired.items() if name != actor}
        self._manager.remove_actor(member.manager_id)
        kill(member.handle)
        events: list[FleetEvent] = [Lost(actor=actor, reason=reason, contexts=contexts)]
        self._beats.pop(actor, None)
        self._leaving.discard(actor)
        if self._num_staying >= self._size:
            return events
        now = self._clock()
        self._restarts.append(now)
        while self._restarts and self._restarts[0] < now - RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) <= max(MAX_RESTARTS_IN_WINDOW, self._size):
            self._add()
        elif not self._members:
            events.append(Exhausted(reason=f"{self.name}: {reason}"))
        return events

    def _expire(self, now: float) -> list[FleetEvent]:
        events: list[FleetEvent] = []
        for tag, call in [(t, c) for t, c in self._calls.items() if c.deadline < now]:
            if self._calls.pop(tag, None) is None:
                continue  # it died with its actor a moment ago
            if call.context in _OURS:
                events += self._lose(call.actor, f"no answer to {call.context} in time")
            else:
                self._expired[tag] = call.actor
                events.append(Reply(actor=call.actor, context=call.context, value=_TOO_LATE))
        return events

    def _heartbeat(self, now: float) -> None:
        for member in list(self._members.values()):
            due = now - member.last_beat > HEARTBEAT_EVERY_S
            if member.is_ready and due and not member.heartbeat_open:
                member.last_beat = now
                member.heartbeat_open = self.call(
                    member.name, "status", {}, context=_HEARTBEAT, deadline_s=HEARTBEAT_DEADLINE_S
                )


_START = "start"
_HEARTBEAT = "heartbeat"
_PLACED = "placed"
_OURS = (_START, _HEARTBEAT, _PLACED)
_TOO_LATE = RoleFailure(
    kind="TimeoutError", message="no answer before the call's deadline", exit_code=1, detail=""
)


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
