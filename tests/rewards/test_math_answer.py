"""Symbolic answers in a child process that can be killed."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from rewards.child import ChildDiedError, ChildWorker
from rewards.exact import MathAnswer
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, Verdict
from tests.rewards.samples import sample

pytestmark = pytest.mark.process

STAND_IN = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "answer" in job:
        job = {"do": job["answer"], "correct": job["answer"] == "right"}
    if job["do"] == "hang":
        time.sleep(600)
    if job["do"] == "die":
        sys.exit(3)
    print("[1]" if job["do"] == "babble" else json.dumps(job), flush=True)
"""
BOMB = r"\boxed{9^{9^{9^{9}}}}"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def with_stand_in(body: Callable[[ChildWorker], Awaitable[None]]) -> None:
    async def run() -> None:
        child = ChildWorker([sys.executable, "-c", STAND_IN], start_timeout_s=30)
        try:
            await child.start()
            await body(child)
        finally:
            await child.close()

    asyncio.run(run())


CASES = (
    (r"so \boxed{0.5}", "1/2", 1.0, None),
    (r"it is $\frac{1}{2}$", "0.5", 1.0, None),
    (BOMB, "3", None, InvalidCause.TIMEOUT),
    (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0, None),
    ("seven", "7", 0.0, None),
    ("7 or 8", "7", 0.0, None),
    ("<think>7</think> 8", "7", 0.0, None),
    ("7", None, None, InvalidCause.ERROR),
    ("7", " ", None, InvalidCause.ERROR),
    ("7", "$$", None, InvalidCause.ERROR),
)


def test_math_verify_judges_in_the_child_and_a_bomb_costs_one_sample() -> None:
    async def run() -> tuple[list[Verdict], list[int | None]]:
        verifier = MathAnswer(principle="rule", timeout_s=3)
        await verifier.start()
        pids = [verifier.child.pid]
        verdicts = await verifier.score([sample(a, reference=ref) for a, ref, _, _ in CASES])
        pids.append(verifier.child.pid)
        await verifier.close()
        return verdicts, pids

    verdicts, pids = asyncio.run(run())
    assert [(v.score, v.cause) for v in verdicts] == [
        (score, cause) for _, _, score, cause in CASES
    ]
    assert "no reference" in str(verdicts[7].evidence)
    assert pids[0] != pids[1]
    assert not any(is_alive(pid) for pid in pids if pid is not None), "no child may be left"


def test_a_hanging_sample_is_killed_and_the_next_one_is_judged() -> None:
    async def run() -> list[Verdict]:
        verifier = MathAnswer(principle="rule", timeout_s=0.3)
        verifier.child = ChildWorker([sys.executable, "-c", STAND_IN], start_timeout_s=30)
        answers = ["right", "hang", "right", "die", "wrong"]
        try:
            return await verifier.score([sample(a, reference="x") for a in answers])
        finally:
            await verifier.close()

    verdicts = asyncio.run(run())
    assert [v.score for v in verdicts] == [1.0, None, 1.0, None, 0.0]
    assert [v.cause for v in verdicts if v.cause] == [InvalidCause.TIMEOUT, InvalidCause.ERROR]


def test_a_child_that_dies_or_babbles_fails_its_job_alone() -> None:
    async def body(child: ChildWorker) -> None:
        for fault in ("die", "babble"):
            with pytest.raises(ChildDiedError):
                await child.ask({"do": fault}, 30)
            assert await child.ask({"do": "work"}, 30) == {"do": "work"}

    with_stand_in(body)


def test_jobs_wait_for_their_turn_without_spending_their_time() -> None:
    async def body(child: ChildWorker) -> None:
        outcomes = await asyncio.gather(
            child.ask({"do": "hang"}, 0.2),
            child.ask({"do": "hang"}, 0.2),
            child.ask({"do": "work"}, 10),
            return_exceptions=True,
        )
        assert [type(o) for o in outcomes] == [TimeoutError, TimeoutError, dict]

    with_stand_in(body)


def test_a_caller_that_goes_away_takes_the_job_with_it() -> None:
    async def body(child: ChildWorker) -> None:
        pid = child.pid
        assert pid is not None
        job = asyncio.create_task(child.ask({"do": "hang"}, 600))
        await asyncio.sleep(0.05)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert not is_alive(pid)
        assert await child.ask({"do": "work"}, 30) == {"do": "work"}

    with_stand_in(body)


def test_a_closed_child_stays_closed() -> None:
    async def body(child: ChildWorker) -> None:
        await child.close()
        with pytest.raises(VerifierUnavailableError, match="closed"):
            await child.ask({"do": "work"}, 30)
        assert child.pid is None

    with_stand_in(body)


@pytest.mark.parametrize("code", ["import sys; sys.exit(1)", "print('hello')", "input()"])
def test_a_child_that_never_gets_ready_is_unavailable(code: str) -> None:
    async def run() -> None:
        child = ChildWorker([sys.executable, "-c", code], start_timeout_s=0.5)
        with pytest.raises(VerifierUnavailableError):
            await child.start()
        assert child.pid is None

    asyncio.run(run())


def test_a_busy_worker_dies_with_its_parent() -> None:
    parent_code = (
        "import asyncio\n"
        "from rewards.exact import MathAnswer\n"
        "async def main():\n"
        "    verifier = MathAnswer(principle='rule')\n"
        "    await verifier.start()\n"
        f"    job = {{'reference': '3', 'answer': {BOMB!r}}}\n"
        "    task = asyncio.create_task(verifier.child.ask(job, 600))\n"
        "    await asyncio.sleep(0.2)\n"
        "    print(verifier.child.pid, flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        assert select.select([worker], [], [], 10)[0], "the worker outlived its parent"
    finally:
        os.close(worker)
        parent.stdout.close()
