"""Calls of other people's code in threads that may be left behind.

Owns the threads and the count of those that hang. Python cannot end a thread: one whose caller has
given up is *stuck* until its call returns. The threads are daemons, so they hold up no exit. It
does not know what is called. C code that keeps the interpreter's lock (a regular expression with
catastrophic backtracking) stops the whole process, whatever thread it is in: that is for those to
notice who watch the process from outside.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from safeladder.errors import VerifierUnavailableError

NUM_THREADS = 4
"""Calls that run at the same time, and calls that may hang before no more are taken."""
HOPELESS_S = 10.0
"""When all threads have been stuck for so long, they count as dead: slower calls are only slow."""
IDLE_S = 30.0
"""A thread without work ends after this time."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Call:
    """One call, as its thread sees it."""

    function: Callable[[Call], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]
    is_wanted: bool = True
    """False once the caller has given up: whoever runs for long may look and stop."""
    is_running: bool = False


class Threads:
    """At most ``limit`` daemon threads, started when they are needed."""

    def __init__(self, name: str, limit: int = NUM_THREADS) -> None:
        self._name = name
        self._limit = limit
        self._waiting: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_threads = 0
        self._num_open = 0
        self._stuck: dict[Call, float] = {}
        """Calls that run although nobody waits → when they were left behind, monotonic."""

    @property
    def num_stuck(self) -> int:
        """Calls that were left behind and still run."""
        return len(self._stuck)

    @property
    def is_dead(self) -> bool:
        """Whether all threads have been stuck for ``HOPELESS_S``: only a new process helps."""
        with self._lock:
            newest = max(self._stuck.values(), default=0.0)
            return len(self._stuck) >= self._limit and time.monotonic() - newest >= HOPELESS_S

    async def run(self, function: Callable[[Call], T]) -> T:
        """What ``function`` returns or raises, from a thread; cancel it to give up waiting.

        Raises ``VerifierUnavailableError`` while all threads are stuck.
        """
        loop = asyncio.get_running_loop()
        call = Call(function, loop, loop.create_future())
        with self._lock:
            if len(self._stuck) >= self._limit:
                raise VerifierUnavailableError(f"{self._name}: all {self._limit} threads hang")
            self._waiting.put(call)
            self._num_open += 1
            if self._num_threads < min(self._num_open, self._limit):
                self._num_threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        try:
            answer: T = await call.answer
            return answer
        finally:
            with self._lock:
                call.is_wanted = False
                if call.is_running:
                    self._stuck[call] = time.monotonic()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            answer: Any = None
            fault: Exception | None = None
            try:
                if call.is_wanted:
                    answer = call.function(call)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller
                fault = error
            except BaseException as error:  # noqa: BLE001 - sys.exit() ends nothing but the call
                fault = RuntimeError(f"{type(error).__name__}: {error}")
            with self._lock:
                call.is_running = False
                self._num_open -= 1
                self._stuck.pop(call, None)
            if call.is_wanted:
                _deliver(call, answer, fault)
            del call, answer, fault  # a thread that waits keeps nothing alive

    def _next(self) -> Call | None:
        """The next call, or None if there was none for long: then this thread must end."""
        while True:
            try:
                call = self._waiting.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._waiting.empty():
                        self._num_threads -= 1
                        return None
                continue
            with self._lock:
                call.is_running = call.is_wanted
            return call


def _deliver(call: Call, answer: Any, fault: Exception | None) -> None:
    def settle() -> None:
        if call.answer.done():
            return
        if fault is None:
            call.answer.set_result(answer)
        else:
            call.answer.set_exception(fault)

    try:
        call.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return
