"""A verifier actor whose rule really hangs: its calls end in time, and it asks to be replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.verifier import VerifierActor
from rewards import threads
from safeladder.records import InvalidCause
from tests.rewards.samples import sample
from tests.runs.faulty import Stuck

pytestmark = pytest.mark.process


class NoStore:
    async def put(self, value: Any) -> Any: ...

    async def get(self, handle: Any) -> Any: ...


def test_calls_end_in_time_and_the_status_says_when_no_thread_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "HOPELESS_S", 0.0)
    actor = VerifierActor("v-0", "p", Stuck(principle="p", word="hang"), NoStore(), 0.2)

    async def run() -> None:
        assert not (await actor.start()).is_dead
        for _ in range(threads.NUM_THREADS):
            assert not (await actor.status()).is_dead
            (verdict,) = await actor.probe([sample("hang")])
            assert (verdict.cause, verdict.retryable) == (InvalidCause.TIMEOUT, True)
        await asyncio.sleep(0)
        (verdict,) = await actor.probe([sample("fine")])
        assert verdict.cause is InvalidCause.UNAVAILABLE
        status = await actor.status()
        assert status.is_dead
        assert status.failure == "tests.runs.faulty:Stuck hangs in all its threads"

    asyncio.run(run())
