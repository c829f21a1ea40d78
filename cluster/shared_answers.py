"""Score once: equal work that is asked for again, while it runs or soon after, is not done again.

A gRPC retry may repeat a call that did run. Callers with an equal key share one execution, and its
answer is kept for some minutes, within bounds of time and memory. Knows neither gRPC nor verdicts.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

Work = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Makes an answer, and says whether it is final. An answer that is not final (it holds a failure)
goes to those who wait for it and is then forgotten: who asks later is answered anew.
"""


ENTRY_BYTES = 256
"""What Python itself spends on one kept answer, about."""


_Kept = tuple[bytes, float]
"""Answer, and until when it is kept. A plain tuple: the garbage collector need not look at one
again, and there may be a hundred thousand."""


class SharedAnswers:
    """Answers by idempotency key."""

    def __init__(
        self,
        *,
        ttl_s: float = 600.0,
        max_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self.num_bytes = 0
        """Size of what is kept, keys included."""

    async def get(self, key: str, work: Work) -> bytes:
        """The answer of ``key``: kept, being made for somebody else, or made now.

        The work outlives a caller that goes away, since its retry will want the result.
        """
        if (body := self.kept(key)) is not None:
            return body
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, work))
            self._running[key] = task
        return await asyncio.shield(task)

    def kept(self, key: str) -> bytes | None:
        """The answer of ``key``, if there is one."""
        kept = self._kept.get(key)
        return None if kept is None or kept[1] <= self._clock() else kept[0]

    def keep(self, key: str, body: bytes) -> None:
        """Keep an answer that was made without waiting."""
        now_s = self._clock()
        if (older := self._kept.pop(key, None)) is not None:
            self.num_bytes -= _size(key, older[0])
        self._kept[key] = (body, now_s + self._ttl_s)
        self.num_bytes += _size(key, body)
        # Oldest first: as long as the oldest is out of date, or there is too much.
        while self._kept:
            oldest, (old, until_s) = next(iter(self._kept.items()))
            if until_s > now_s and self.num_bytes <= self._max_bytes:
                break
            del self._kept[oldest]
            self.num_bytes -= _size(oldest, old)

    async def close(self) -> None:
        """Cancel what still runs."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str, work: Work) -> bytes:
        try:
            body, is_final = await work()
        finally:
            del self._running[key]
        if is_final:
            self.keep(key, body)
        return body


def _size(key: str, body: bytes) -> int:
    return ENTRY_BYTES + len(key) + len(body)
