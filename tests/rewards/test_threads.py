"""A rule that really hangs costs its own call, and nothing else."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from rewards import threads
from rewards.deadline import score_with_deadline
from rewards.format import ThinkFormat
from rewards.judging import Judgment, RuleVerifier
from rewards.threads import NUM_THREADS, Threads
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest, Verdict
from tests.rewards.samples import sample


class Sleepy(RuleVerifier):
    """Sleeps as a C call does, or loops as Python does, until it is let go."""

    def __init__(self) -> None:
        super().__init__("p", {})
        self.let_go = threading.Event()
        self.judged_in: list[str] = []

    def judge(self, request: ScoreRequest) -> Judgment:
        self.judged_in.append(threading.current_thread().name)
        while "loop" in request.answer and not self.let_go.is_set():
            pass
        if "sleep" in request.answer:
            self.let_go.wait(60)
        if "exit" in request.answer:
            sys.exit(0)
        return Judgment(1.0)


class HalfSafe(ThinkFormat):
    """Of a quick class, without saying that it is quick too."""

    def judge(self, request: ScoreRequest) -> Judgment:
        time.sleep(3600)
        return Judgment(1.0)


@pytest.fixture
def sleepy() -> Iterator[Sleepy]:
    verifier = Sleepy()
    yield verifier
    verifier.let_go.set()


async def ask(verifier: RuleVerifier, *texts: str, timeout_s: float = 0.2) -> list[Verdict]:
    requests = [sample(text, sample_id=f"0/0/{i}") for i, text in enumerate(texts)]
    return await score_with_deadline(verifier, requests, timeout_s, principle="p")


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def causes(verdicts: Sequence[Verdict]) -> list[InvalidCause | None]:
    return [verdict.cause for verdict in verdicts]


@pytest.mark.parametrize("how", ["sleep", "loop"])
def test_a_hang_is_invalid_at_the_deadline_and_other_calls_go_on(sleepy: Sleepy, how: str) -> None:
    async def run() -> None:
        hung = asyncio.ensure_future(ask(sleepy, how, "fine"))
        started = time.monotonic()
        assert [v.score for v in await ask(sleepy, "fine", timeout_s=5)] == [1.0]
        assert causes(await hung) == [InvalidCause.TIMEOUT] * 2
        assert time.monotonic() - started < 10
        assert sleepy.num_stuck == 1
        sleepy.let_go.set()
        await until(lambda: not sleepy.num_stuck)
        assert len(sleepy.judged_in) == 2, "what nobody waits for is not judged"

    asyncio.run(run())


def test_when_all_threads_hang_the_verifier_is_unavailable_until_one_returns(
    sleepy: Sleepy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        await asyncio.gather(*(ask(sleepy, "sleep") for _ in range(NUM_THREADS)))
        assert sleepy.num_stuck == NUM_THREADS
        assert not sleepy.is_dead, "it may be slow only"
        (verdict,) = await ask(sleepy, "fine")
        assert (verdict.cause, verdict.retryable) == (InvalidCause.UNAVAILABLE, True)
        monkeypatch.setattr(threads, "HOPELESS_S", 0.0)
        assert sleepy.is_dead
        sleepy.let_go.set()
        await until(lambda: not sleepy.num_stuck)
        assert not sleepy.is_dead
        assert [v.score for v in await ask(sleepy, "fine", timeout_s=5)] == [1.0]

    asyncio.run(run())


def test_a_call_that_waits_for_a_thread_may_be_given_up(sleepy: Sleepy) -> None:
    async def run() -> None:
        hung = [asyncio.ensure_future(ask(sleepy, "sleep")) for _ in range(NUM_THREADS)]
        await asyncio.sleep(0.05)
        assert causes(await ask(sleepy, "waits", timeout_s=0.01)) == [InvalidCause.TIMEOUT]
        await asyncio.sleep(0.01)  # the cancellation is on its way
        sleepy.let_go.set()
        assert [v.score for (v,) in await asyncio.gather(*hung)] == [1.0] * NUM_THREADS
        assert [v.score for v in await ask(sleepy, "fine", timeout_s=5)] == [1.0]
        assert len(sleepy.judged_in) == NUM_THREADS + 1

    asyncio.run(run())


def test_sys_exit_in_a_rule_is_an_error_of_its_sample(sleepy: Sleepy) -> None:
    failed, judged = asyncio.run(ask(sleepy, "exit", "fine", timeout_s=5))
    assert (failed.cause, failed.evidence) == (InvalidCause.ERROR, "SystemExit: 0")
    assert judged.score == 1.0


def test_only_a_class_that_says_it_is_quick_runs_without_a_thread(sleepy: Sleepy) -> None:
    assert ThinkFormat(principle="p").runs_inline
    heir = HalfSafe(principle="p")
    assert not heir.runs_inline
    assert causes(asyncio.run(ask(heir, "anything"))) == [InvalidCause.TIMEOUT]
    assert [v.score for v in asyncio.run(ask(sleepy, "fine", timeout_s=5))] == [1.0]
    assert threading.current_thread().name not in sleepy.judged_in


def test_threads_without_work_end_and_others_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_S", 0.01)
    pool = Threads("test: ends")

    async def run() -> None:
        assert await pool.run(lambda _: 1) == 1
        await until(lambda: "test: ends" not in {one.name for one in threading.enumerate()})
        assert await pool.run(lambda _: 2) == 2
        with pytest.raises(VerifierUnavailableError, match="away"):
            await pool.run(_raise)

    asyncio.run(run())


def _raise(_: object) -> None:
    raise VerifierUnavailableError("away")
