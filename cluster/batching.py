"""Samples of several calls given to one verifier together, within a bound of waiting.

One ``Batcher`` serves one verifier, so principles never mix. Every call keeps its own deadline. A
batch of several calls that fails, or that has not come back after half of a call's time, is left
behind and that call is asked alone: a slow or poisonous sample costs its neighbours time, never
their verdicts. Knows neither gRPC nor what a verdict leads to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rewards.deadline import score_with_deadline
from safeladder.ports import Verifier
from safeladder.records import ScoreRequest, Verdict, VerdictStatus


@dataclass(slots=True)
class _Batch:
    """Calls on their way to the verifier together."""

    samples: list[ScoreRequest] = field(default_factory=list)
    num_calls: int = 0
    until_s: float = 0.0
    """When the last of several calls stops waiting for it."""
    deadline_s: float = 0.0
    """When the last call must have an answer."""
    is_full: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[list[Verdict]] | None = None


class Batcher:
    """Asks ``verifier`` with at most ``max_batch`` samples at a time, or with one larger call."""

    def __init__(
        self, principle: str, verifier: Verifier, *, max_batch: int, max_wait_s: float
    ) -> None:
        self._principle = principle
        self._verifier = verifier
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._open: _Batch | None = None
        self._tasks: set[asyncio.Task[list[Verdict]]] = set()

    @property
    def num_waiting(self) -> int:
        """Samples in the batch that is being gathered."""
        return len(self._open.samples) if self._open else 0

    async def score(self, samples: Sequence[ScoreRequest], budget_s: float) -> list[Verdict]:
        """One verdict for each sample, in order, within ``budget_s``. Never raises for a fault of
        the verifier."""
        if len(samples) >= self._max_batch:
            return await self._ask(samples, budget_s)
        deadline_s = time.monotonic() + budget_s
        batch, start = self._join(samples, budget_s)
        assert batch.task is not None
        done, _ = await asyncio.wait({batch.task}, timeout=budget_s / 2)
        if batch.num_calls == 1:
            return await batch.task
        if done and not all(map(_is_invalid, batch.task.result())):
            return batch.task.result()[start : start + len(samples)]
        return await self._ask(samples, deadline_s - time.monotonic())

    async def close(self) -> None:
        """Cancel what is on its way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _join(self, samples: Sequence[ScoreRequest], budget_s: float) -> tuple[_Batch, int]:
        """The batch that these samples are in, and the place of the first of them."""
        batch = self._open
        if batch is not None and len(batch.samples) + len(samples) > self._max_batch:
            self._depart(batch)
            batch = None
        if batch is None:
            batch = self._open = _Batch()
            batch.task = asyncio.create_task(self._run(batch))
            self._tasks.add(batch.task)
            batch.task.add_done_callback(self._tasks.discard)
        start = len(batch.samples)
        batch.samples += samples
        batch.num_calls += 1
        now_s = time.monotonic()
        batch.until_s = max(batch.until_s, now_s + budget_s / 2)
        batch.deadline_s = max(batch.deadline_s, now_s + budget_s)
        if len(batch.samples) == self._max_batch:
            self._depart(batch)
        return batch, start

    def _depart(self, batch: _Batch) -> None:
        if self._open is batch:
            self._open = None
        batch.is_full.set()

    async def _run(self, batch: _Batch) -> list[Verdict]:
        try:
            await asyncio.wait_for(batch.is_full.wait(), self._max_wait_s)
        except TimeoutError:
            self._depart(batch)
        until_s = batch.deadline_s if batch.num_calls == 1 else batch.until_s
        return await self._ask(batch.samples, until_s - time.monotonic())

    async def _ask(self, samples: Sequence[ScoreRequest], budget_s: float) -> list[Verdict]:
        return await score_with_deadline(
            self._verifier, samples, max(0.0, budget_s), principle=self._principle
        )


def _is_invalid(verdict: Verdict) -> bool:
    return verdict.status is VerdictStatus.INVALID
