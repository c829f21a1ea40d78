"""Bounded time and no exception, whatever the verifier does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from rewards.deadline import score_with_deadline
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus
from tests.rewards.samples import sample
from tests.rewards.stand_ins import Misbehaving, WordRule

REQUESTS = [sample("yes", sample_id="0/0/0"), sample("no", sample_id="0/0/1")]


def ask(behave: Callable[[Sequence[ScoreRequest]], Any], timeout_s: float = 30) -> list[Verdict]:
    verifier = Misbehaving(behave)
    return asyncio.run(score_with_deadline(verifier, REQUESTS, timeout_s, principle="p"))


def good(requests: Sequence[ScoreRequest], principle: str = "p") -> list[Verdict]:
    return [
        Verdict(
            sample_id=request.sample_id,
            principle=principle,
            verifier="v",
            verifier_version="1",
            status=VerdictStatus.OK,
            score=1.0,
        )
        for request in requests
    ]


def fail(error: BaseException) -> Any:
    raise error


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_and_ignore_cancellation() -> None:
    for _ in range(3):
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            continue


def test_good_verdicts_pass_unchanged() -> None:
    assert ask(good) == good(REQUESTS)
    rule = WordRule(principle="p", word="yes")
    verdicts = asyncio.run(score_with_deadline(rule, REQUESTS, 30, principle="p"))
    assert [v.score for v in verdicts] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("behave", "cause", "retryable"),
    [
        (lambda r: fail(RuntimeError("bug")), InvalidCause.ERROR, False),
        (lambda r: fail(asyncio.CancelledError()), InvalidCause.ERROR, False),
        (lambda r: fail(VerifierUnavailableError("away")), InvalidCause.UNAVAILABLE, True),
        (lambda r: fail(ConnectionResetError("away")), InvalidCause.UNAVAILABLE, True),
        (lambda r: None, InvalidCause.MALFORMED, False),
        (lambda r: good(r)[:1], InvalidCause.MALFORMED, False),
        (lambda r: good(r) * 2, InvalidCause.MALFORMED, False),
        (lambda r: good(r)[::-1], InvalidCause.MALFORMED, False),
        (lambda r: good(r, "other"), InvalidCause.MALFORMED, False),
        (lambda r: [1.0, 0.0], InvalidCause.MALFORMED, False),
    ],
)
def test_faults_become_invalid_verdicts_of_the_right_samples(
    behave: Callable[[Sequence[ScoreRequest]], Any], cause: InvalidCause, retryable: bool
) -> None:
    verdicts = ask(behave)
    assert [v.sample_id for v in verdicts] == ["0/0/0", "0/0/1"]
    assert {v.principle for v in verdicts} == {"p"}
    assert {(v.status, v.cause, v.retryable) for v in verdicts} == {
        (VerdictStatus.INVALID, cause, retryable)
    }


def test_only_the_misplaced_verdict_is_lost() -> None:
    first, second = ask(lambda r: [good(r)[0], replace(good(r)[1], sample_id="9/9/9")])
    assert first.score == 1.0
    assert second.cause is InvalidCause.MALFORMED
    assert second.sample_id == "0/0/1"


@pytest.mark.parametrize("sleeper", [hang, hang_and_ignore_cancellation])
def test_a_verifier_that_does_not_answer_is_left_behind(sleeper: Callable[[], Any]) -> None:
    verdicts = ask(lambda r: sleeper(), timeout_s=0.05)
    assert {(v.cause, v.retryable) for v in verdicts} == {(InvalidCause.TIMEOUT, True)}


def test_a_cancelled_caller_cancels_the_verifier() -> None:
    async def run() -> bool:
        ended = asyncio.Event()

        async def notice(_: Sequence[ScoreRequest]) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        asking = asyncio.create_task(
            score_with_deadline(Misbehaving(notice), REQUESTS, 30, principle="p")
        )
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(ended.wait(), 5)
        return ended.is_set()

    assert asyncio.run(run())
