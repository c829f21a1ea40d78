"""A fleet of equal actors: which are alive, which calls are open, who replaces the dead.

Owns the deadlines of calls, and replacement within a budget. RLlib's ``FaultTolerantActorManager``
carries ``start`` and the heartbeats; work goes past it in exchanges (see ``remote``), at most one
with letters and one that waits for an actor at a time. Does not know what the calls mean: a reply
carries back the caller's own context. The coordinator's lease table, not this class, decides what
was in flight.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from cluster.remote import Exchange, answers, exchange, first_line, kill
from cluster.role_host import Letter, RoleFailure
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
    context: Any
    deadline: float


@dataclass(slots=True)
class _Member:
    name: str
    manager_id: int
    handle: Any
    asked: str
    """What the manager has asked it: ``placed``, ``start``, ``heartbeat``, or nothing."""
    asked_at: float
    is_patient: bool = False
    """Whether it may wait for room in the cluster as long as that takes."""
    is_ready: bool = False
    said: Any = None
    """Its newest answer to ``start`` or a heartbeat."""
    calls: dict[int, _Call] = field(default_factory=dict)
    """Tag → open call."""
    outbox: list[Letter] = field(default_factory=list)
    exchanges: int = 0
    """On their way."""


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
        self._deadlines_s = {
            _PLACED: math.inf,
            _START: start_deadline_s,
            _HEARTBEAT: HEARTBEAT_DEADLINE_S,
        }
        self._clock = clock
        self._manager = FaultTolerantActorManager(max_remote_requests_in_flight_per_actor=1_000_000)
        self._members: dict[str, _Member] = {}
        self._exchanges: dict[Exchange, _Member] = {}
        self.num_exchanges = 0
        """Since the start, heartbeats left out."""
        self._tags = itertools.count()
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
        return len(self._members[actor].calls)

    @property
    def waiting(self) -> list[Any]:
        """References of which one is there as soon as an actor has something to say."""
        return [exchange.answers for exchange in self._exchanges]

    def least_busy(self, among: Collection[str] | None = None) -> str | None:
        """The ready actor, one of ``among`` if that is given, with the fewest open calls, or
        None."""
        ready = [m for m in self._members.values() if m.is_ready]
        chosen = [m for m in ready if among is None or m.name in among]
        best = min(chosen, key=lambda member: len(member.calls), default=None)
        return None if best is None else best.name

    def call(
        self,
        actor: str,
        method: str,
        arguments: Mapping[str, Any],
        *,
        context: Any,
        deadline_s: float,
    ) -> bool:
        """Queue one call, which goes out with the next ``send`` or ``poll``. False if the actor is
        gone: then no reply will come."""
        member = self._members.get(actor)
        if member is None:
            return False
        tag = next(self._tags)
        member.calls[tag] = _Call(context, self._clock() + deadline_s)
        member.outbox.append(Letter(tag, method, dict(arguments)))
        return True

    def send(self) -> None:
        """Let the queued calls go, all of an actor's in one exchange."""
        for member in self._members.values():
            if member.outbox or (member.calls and not member.exchanges):
                letters, member.outbox = member.outbox, []
                methods = [letter.method for letter in letters]
                reached_for(methods, "asked", member.name)
                self._exchanges[exchange(member.handle, letters)] = member
                reached_for(methods, "sent", member.name)
                member.exchanges += 1
                self.num_exchanges += 1

    def poll(self) -> list[FleetEvent]:
        """Everything that happened since the last poll; never waits."""
        events, self._pending = self._pending, []
        now = self._clock()
        for result in self._manager.fetch_ready_async_reqs(timeout_seconds=0.0):
            member = self._members.get(result.tag)
            if member is None:
                continue
            if result.ok:
                events += self._on_health(member, result.get())
            else:
                events += self._lose(member, first_line(result.get()))
        for done, found in answers(list(self._exchanges)):
            member = self._exchanges.pop(done, None)
            if member is None:
                continue  # lost a moment ago
            member.exchanges -= 1
            if isinstance(found, str):
                events += self._lose(member, found)
                continue
            for answer in found:
                call = member.calls.pop(answer.tag, None)
                if call is not None:  # else too late
                    reply = Reply(actor=member.name, context=call.context, value=answer.value)
                    events.append(reply)
        for member in list(self._members.values()):
            events += self._watch(member, now)
        self.send()
        return events

    def resize(self, size: int) -> list[str]:
        """Have so many actors. New ones start as the cluster has room; of too many, those that are
        not up yet end now, and the names of the others, newest first, are returned: each is to be
        ended by ``dismiss`` when it has nothing left to do, and is not replaced if it dies."""
        self._size = size
        for member in [m for m in reversed(self._members.values()) if not m.is_ready]:
            if self._num_staying > size:
                self._lose(member, "the fleet is smaller now")
        staying = [m.name for m in self._members.values() if m.name not in self._leaving]
        leaving = staying[size:][::-1]
        self._leaving.update(leaving)
        while self._num_staying < size:
            self._add()
        return leaving

    def dismiss(self, actor: str) -> tuple[Any, ...]:
        """End an actor that leaves. Returns the contexts of the calls that end with it."""
        member = self._members.get(actor)
        if member is None:
            return ()
        self._leaving.add(actor)
        lost = [e for e in self._lose(member, "it leaves") if isinstance(e, Lost)]
        return lost[0].contexts

    @property
    def _num_staying(self) -> int:
        return len(self._members) - len(self._leaving)

    def retire(self, actor: str, reason: str) -> None:
        """End an actor that is alive but of no use (hung, poisoned); a replacement starts."""
        if (member := self._members.get(actor)) is not None:
            self._pending += self._lose(member, reason)

    def close(self) -> None:
        """End all actors at once. Roles that must say goodbye are called before."""
        for member in self._members.values():
            kill(member.handle)
        self._members.clear()
        self._exchanges.clear()
        self._manager.clear()

    def _add(self) -> None:
        name = f"{self.name}-{next(self._numbers)}"
        is_patient = sum(not m.is_patient for m in self._members.values()) >= self._num_needed
        handle = self._spawn(name)
        before = set(self._manager.actor_ids())
        self._manager.add_actors([handle])
        (manager_id,) = set(self._manager.actor_ids()) - before
        asked = _PLACED if is_patient else _START
        member = _Member(name, manager_id, handle, asked, self._clock(), is_patient)
        self._members[name] = member
        self._ask(member, asked)

    def _ask(self, member: _Member, asked: str) -> None:
        """One call through the manager, whose tag is the actor's name."""
        member.asked, member.asked_at = asked, self._clock()
        self._manager.foreach_actor_async(
            "call",
            tag=member.name,
            kwargs={"method": "start" if asked == _START else "status", "arguments": {}},
            remote_actor_ids=[member.manager_id],
        )

    def _on_health(self, member: _Member, value: Any) -> list[FleetEvent]:
        asked, member.asked = member.asked, ""
        if asked == _PLACED:  # it answers once its process is there
            self._ask(member, _START)
            return []
        if asked == _HEARTBEAT:
            if getattr(value, "is_dead", False):
                return self._lose(member, value.failure or "its engine is dead")
            if not isinstance(value, RoleFailure):
                member.said = self._beats[member.name] = value
            return []
        if isinstance(value, RoleFailure):
            log.error("%s did not start: %s", member.name, value.detail)
            return self._lose(member, f"start failed: {value.kind}: {value.message}")
        member.is_ready, member.said = True, value
        return [Joined(actor=member.name, value=value)]

    def _lose(self, member: _Member, reason: str) -> list[FleetEvent]:
        del self._members[member.name]
        self._exchanges = {e: m for e, m in self._exchanges.items() if m is not member}
        self._manager.remove_actor(member.manager_id)
        kill(member.handle)
        contexts = tuple(call.context for call in member.calls.values())
        events: list[FleetEvent] = [Lost(actor=member.name, reason=reason, contexts=contexts)]
        self._beats.pop(member.name, None)
        self._leaving.discard(member.name)
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

    def _watch(self, member: _Member, now: float) -> list[FleetEvent]:
        """Deadlines of its calls, and of what says whether it lives."""
        passed = now - member.asked_at
        if member.asked and passed > self._deadlines_s[member.asked]:
            return self._lose(member, f"no answer to {member.asked} in time")
        if member.is_ready and not member.asked and passed > HEARTBEAT_EVERY_S:
            self._ask(member, _HEARTBEAT)
        overdue = [tag for tag, call in member.calls.items() if call.deadline < now]
        contexts = [member.calls.pop(tag).context for tag in overdue]
        return [Reply(actor=member.name, context=c, value=_TOO_LATE) for c in contexts]


_START = "start"
_HEARTBEAT = "heartbeat"
_PLACED = "placed"
_TOO_LATE = RoleFailure(
    kind="TimeoutError", message="no answer before the call's deadline", exit_code=1, detail=""
)
