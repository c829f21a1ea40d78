"""The actor's door to Ray's core: ``RoleHost`` is the Ray actor around a role, a plain class.

Whatever a role raises comes back as a ``RoleFailure``: Ray's own errors then mean one thing only,
that the process is gone.

A call of Ray's costs both processes about a millisecond, whatever it carries. So a fleet's calls
travel as letters in an ``exchange``, which takes many and brings back all answers that are there::

    driver                                    actor
    exchange([letter 1, letter 2]) ─────────▶ runs both
                                              2 is done
    [answer 2], bundle of what 2 has put ◀───
    exchange([letter 3]) ───────────────────▶ runs it beside 1
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import ray

from cluster.placement import arm_commit_points, pin
from safeladder.errors import SafeladderError
from safeladder.ports import PeerFailedError
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload

LINGER_S = 0.05
"""An actor with more to do gives no two answers within this time, so that one which does much does
not answer for each piece alone. After a longer silence it answers at once."""
EXCHANGE_S = 10.0
"""An exchange without replies ends by then."""

BuildRole = Callable[..., Any]
"""Builds a role inside its own process; importable by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFailure:
    """An exception that a role raised, as data."""

    kind: str
    """Class name of the exception."""
    message: str
    exit_code: int
    """The code of our own errors, 1 for all others."""
    detail: str
    """Traceback text, for the log."""


@dataclass(slots=True)
class Handle:
    """Where a stored payload lies. Opaque to everyone else; Ray passes it on unresolved."""

    reference: Any
    """Of a Ray object. Until its exchange is over, a payload has none yet."""
    place: int | None = None
    """Position in the object, if that is a bundle of several payloads."""

    def payload(self, stored: Any) -> Any:
        """What is meant of what is stored there."""
        return stored if self.place is None else stored[self.place]


@dataclass(frozen=True, slots=True)
class Letter:
    """One call of a method of a role, among others in an exchange."""

    tag: int
    method: str
    arguments: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """What one letter came to."""

    tag: int
    value: Any
    """A ``RoleFailure`` if the role raised."""
    handles: list[Handle]
    """Of what it has put into the bundle, the very objects that stand in ``value``."""


_PUTS: ContextVar[list[tuple[Handle, Any]]] = ContextVar("puts")
"""What the letter that is being answered has put."""


class RayStore:
    """``ports.PayloadStore`` on the object store.

    An object dies with its owner, and no payload may die with the actor that made it. What a letter
    puts goes out with its answer, as a return value of the exchange: Ray lets the caller own that.
    What is put otherwise is owned by the store actor, which costs one more call.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._reading: dict[Any, asyncio.Future[Any]] = {}

    async def put(self, value: Any) -> Handle:
        """Store."""
        puts = _PUTS.get(None)
        if puts is None:
            return Handle(ray.put(value, _owner=self._owner))
        handle = Handle(None)
        puts.append((handle, value))
        return handle

    async def get(self, handle: Handle) -> Any:
        """The stored value, arrays mapped without a copy. Raises ``KeyError`` when it is lost.

        Who reads several payloads of a bundle at once unpacks it once."""
        reference = handle.reference
        reading = self._reading.get(reference)
        if reading is None:
            reading = self._reading[reference] = asyncio.ensure_future(_read(reference))
            reading.add_done_callback(lambda _: self._reading.pop(reference))
        stored = await asyncio.shield(reading)
        if isinstance(stored, ray.exceptions.RayError):
            raise KeyError(f"payload is gone: {type(stored).__name__}") from stored
        return handle.payload(stored)


async def _read(reference: Any) -> Any:
    try:
        return await reference
    except ray.exceptions.RayError as error:
        return error


class RayPeer:
    """``ports.Peer``: another role's actor; travels inside arguments."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def of_this_actor(cls) -> RayPeer:
        """The role that asks."""
        return cls(ray.get_runtime_context().current_actor)

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """See ``ports.Peer.call``."""
        try:
            value = await self._handle.call.remote(method, dict(arguments))
        except ray.exceptions.RayError as error:
            raise PeerFailedError(f"{method}: {type(error).__name__}") from error
        if isinstance(value, RoleFailure):
            raise PeerFailedError(f"{method}: {value.kind}: {value.message}")
        return value


class RayLink:
    """``ports.WeightLink``: asks the learner's first rank, and is called back as an actor."""

    def __init__(self, learner: RayPeer) -> None:
        self._learner = learner

    async def request(
        self, manifest: WeightManifest, payload: WeightPayload, engine: str, num_workers: int
    ) -> None:
        """See ``ports.WeightLink.request``."""
        arguments = {
            "manifest": manifest,
            "payload": payload,
            "engine": engine,
            "num_workers": num_workers,
            "control": RayPeer.of_this_actor(),
        }
        await self._learner.call("send_weights", arguments)


class StoreOwner:
    """The role of the store actor: it owns objects and does nothing else."""

    async def start(self) -> bool:
        """Answer once."""
        return True


def build_store_owner() -> StoreOwner:
    """Build function of the store actor."""
    return StoreOwner()


class RoleHost:
    """One Ray actor around one role.

    It has the ``ping`` that RLlib's actor manager asks for, but not its ``FaultAwareApply``: that
    mix-in serves calls by function, which we never make, and would load torch into every verifier.
    """

    def __init__(self, build: BuildRole, arguments: Mapping[str, Any], owner: Any, cores: Any):
        pin(cores)
        arm_commit_points()
        store = RayStore(owner) if owner is not None else None
        self._role = build(**arguments) if store is None else build(store=store, **arguments)
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_working = 0
        self._done: list[tuple[Answer, list[tuple[Handle, Any]]]] = []
        self._newest = 0
        """Number of the newest exchange: the others end."""
        self._news = asyncio.Event()
        self._answered_at = 0.0

    async def ping(self) -> str:
        """Health check."""
        return "pong"

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    async def exchange(self, letters: Sequence[Letter]) -> tuple[list[Answer], list[Any]]:
        """Begin with these letters, and return the answers to all that are done by now, and the
        bundle of what they have put. Ends at once, without any, when the next exchange comes in."""
        self._num_working += len(letters)
        for letter in letters:
            task = asyncio.create_task(self._answer(letter))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._newest += 1
        self._news.set()
        if not await self._is_due(self._newest, time.monotonic() + EXCHANGE_S):
            return [], []
        done, self._done = self._done, []
        bundle: list[Any] = []
        for answer, puts in done:
            for handle, value in puts:
                handle.place = len(bundle)
                bundle.append(value)
                answer.handles.append(handle)
        return [answer for answer, _ in done], bundle

    async def _is_due(self, number: int, end: float) -> bool:
        """Wait until it is time for answers; False if the next exchange is to bring them."""
        while self._newest == number:
            now = time.monotonic()
            due = self._answered_at + LINGER_S if self._done else end
            if due <= now or (self._done and not self._num_working):
                self._answered_at = now
                return True
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(due - now):
                    await self._news.wait()
        return False

    async def _answer(self, letter: Letter) -> None:
        puts: list[tuple[Handle, Any]] = []
        _PUTS.set(puts)
        value = await self.call(letter.method, letter.arguments)
        self._num_working -= 1
        self._done.append((Answer(letter.tag, value, []), puts))
        self._news.set()

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Run one coroutine method of the role."""
        try:
            return await getattr(self._role, method)(**arguments)
        except Exception as error:  # noqa: BLE001 - turned into data: only a dead process may look dead
            return RoleFailure(
                kind=type(error).__name__,
                message=str(error),
                exit_code=error.exit_code if isinstance(error, SafeladderError) else 1,
                detail=traceback.format_exc(),
            )
