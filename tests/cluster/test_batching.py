"""Calls share a batch within a bound of waiting; a bad neighbour costs time, never a verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from cluster.batching import Batcher
from safeladder.records import ScoreRequest, Verdict
from tests.cluster.verifier_fakes import LengthVerifier, make_request


class Recorder(LengthVerifier):
    """Keeps the size of each batch; hangs on ``slow`` and raises on ``poison``."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self.batches.append(len(requests))
        words = {request.response for request in requests}
        if "slow" in words:
            await asyncio.sleep(60)
        if "poison" in words:
            raise RuntimeError("boom")
        await asyncio.sleep(0.05)  # asked too late is asked in vain
        return await super().score(requests)


Play = Callable[[Batcher, Recorder], Awaitable[None]]


def play(scenario: Play, *, max_batch: int = 4, max_wait_s: float = 0.05) -> None:
    async def run() -> None:
        verifier = Recorder()
        batcher = Batcher("safety", verifier, max_batch=max_batch, max_wait_s=max_wait_s)
        try:
            await asyncio.wait_for(scenario(batcher, verifier), 30)
        finally:
            await batcher.close()

    asyncio.run(run())


def call(batcher: Batcher, *lengths: int, budget_s: float = 10.0) -> asyncio.Future[list[Verdict]]:
    samples = [make_request(length, "x" * length) for length in lengths]
    return asyncio.ensure_future(batcher.score(samples, budget_s))


def scores(verdicts: Sequence[Verdict]) -> list[float | None]:
    return [verdict.score for verdict in verdicts]


def test_a_full_batch_goes_at_once_and_everybody_gets_their_own() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        started_s = time.monotonic()
        answers = await asyncio.gather(call(batcher, 1), call(batcher, 2, 3), call(batcher, 4))
        assert [scores(answer) for answer in answers] == [[0.01], [0.02, 0.03], [0.04]]
        assert verifier.batches == [4]
        assert time.monotonic() - started_s < 5

    play(scenario, max_wait_s=20)


def test_a_batch_that_does_not_fill_goes_after_the_longest_wait() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        first = call(batcher, 1)
        await asyncio.sleep(0.01)
        assert batcher.num_waiting == 1
        answers = await asyncio.gather(first, call(batcher, 2))
        assert [scores(answer) for answer in answers] == [[0.01], [0.02]]
        assert verifier.batches == [2]
        assert batcher.num_waiting == 0

    play(scenario)


def test_calls_are_never_cut_and_large_ones_go_alone() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        calls = [call(batcher, 1, 2, 3), call(batcher, 4, 5), call(batcher, *range(6, 12))]
        answers = await asyncio.gather(*calls)
        assert [len(answer) for answer in answers] == [3, 2, 6]
        assert sorted(verifier.batches) == [2, 3, 6]

    play(scenario)


def test_a_slow_sample_costs_its_neighbours_time_but_no_verdict() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        slow = asyncio.ensure_future(batcher.score([make_request(9, "slow")], 0.6))
        answers = await asyncio.gather(
            call(batcher, 1, budget_s=0.8), call(batcher, 2, budget_s=2), slow
        )
        assert [scores(answer) for answer in answers[:2]] == [[0.01], [0.02]]
        (verdict,) = answers[2]
        assert (verdict.status, verdict.cause, verdict.retryable) == ("invalid", "timeout", True)
        assert verifier.batches[0] == 3

    play(scenario)


def test_each_call_keeps_its_own_deadline() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        verifier.gate = asyncio.Event()
        long = call(batcher, 1, budget_s=20)
        started_s = time.monotonic()
        (verdict,) = await call(batcher, 2, budget_s=0.3)
        assert verdict.cause == "timeout"
        assert time.monotonic() - started_s < 3
        verifier.gate.set()
        assert scores(await long) == [0.01]

    play(scenario)


def test_a_poisonous_sample_fails_alone() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        poison = asyncio.ensure_future(batcher.score([make_request(9, "poison")], 5))
        good, bad = await asyncio.gather(call(batcher, 1), poison)
        assert scores(good) == [0.01]
        assert [(v.status, v.cause) for v in bad] == [("invalid", "error")]

    play(scenario)


def test_a_call_that_is_alone_in_its_batch_is_asked_once() -> None:
    async def scenario(batcher: Batcher, verifier: Recorder) -> None:
        (verdict,) = await batcher.score([make_request(9, "slow")], 0.3)
        assert verdict.cause == "timeout"
        assert verifier.batches == [1]

    play(scenario)
