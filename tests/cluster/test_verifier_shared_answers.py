"""Answers are kept within bounds of time and memory, and forgotten when they are not final."""

from __future__ import annotations

import asyncio

import pytest

from cluster.shared_answers import ENTRY_BYTES, SharedAnswers


class Work:
    """Counts its runs; each answer says which run made it."""

    def __init__(self, *, is_final: bool = True, size: int = 1) -> None:
        self.is_final = is_final
        self.size = size
        self.num_runs = 0

    async def __call__(self) -> tuple[bytes, bool]:
        self.num_runs += 1
        return bytes([self.num_runs]) * self.size, self.is_final


def test_an_answer_is_kept_for_its_time_and_then_made_anew() -> None:
    now = 0.0

    async def run() -> None:
        nonlocal now
        answers = SharedAnswers(ttl_s=10, clock=lambda: now)
        work = Work()
        assert await answers.get("a", work) == await answers.get("a", work) == b"\x01"
        now = 9.9
        assert await answers.get("a", work) == b"\x01"
        now = 10.0
        assert await answers.get("a", work) == b"\x02"

    asyncio.run(run())


def test_memory_is_bounded_by_forgetting_the_oldest() -> None:
    async def run() -> None:
        answers = SharedAnswers(max_bytes=2 * (ENTRY_BYTES + 11))
        assert answers.num_bytes == 0
        works = {key: Work(size=10) for key in "abc"}
        for key, work in works.items():
            await answers.get(key, work)
        await answers.get("c", works["c"])
        await answers.get("b", works["b"])
        assert (works["b"].num_runs, works["c"].num_runs) == (1, 1)
        assert answers.num_bytes == 2 * (ENTRY_BYTES + 11), "keys count too"
        await answers.get("a", works["a"])
        assert works["a"].num_runs == 2

    asyncio.run(run())


def test_what_is_not_final_or_failed_is_not_kept() -> None:
    async def fail() -> tuple[bytes, bool]:
        raise ValueError("no answer")

    async def run() -> None:
        answers = SharedAnswers()
        work = Work(is_final=False)
        assert await answers.get("a", work) == b"\x01"
        assert await answers.get("a", work) == b"\x02"
        with pytest.raises(ValueError, match="no answer"):
            await answers.get("b", fail)
        assert await answers.get("b", work) == b"\x03"

    asyncio.run(run())


def test_closing_cancels_what_still_runs() -> None:
    async def forever() -> tuple[bytes, bool]:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        answers = SharedAnswers()
        waiter = asyncio.ensure_future(answers.get("a", forever))
        await asyncio.sleep(0)
        await answers.close()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(asyncio.wait_for(run(), 10))
