"""A verifier behind a real service fails for a while: once it is well, so are its verdicts."""

from __future__ import annotations

import asyncio

import pytest

from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from safeladder.ports import Verifier
from safeladder.records import InvalidCause, ScoreRequest, Verdict
from tests.cluster.verifier_fakes import LengthVerifier, make_request

pytestmark = pytest.mark.process

SAMPLES = [make_request(0, "a"), make_request(1, "b")]


class Moody(RuleVerifier):
    """Fails as it is told to, on the responses that it is told."""

    def __init__(self) -> None:
        super().__init__("safety", {})
        self.fault: Exception | None = None
        self.fails_on = "ab"
        self.num_judged = 0

    def judge(self, request: ScoreRequest) -> Judgment:
        self.num_judged += 1
        if self.fault is not None and request.response in self.fails_on:
            raise self.fault
        return Judgment(1.0)


class QuickMoody(Moody):
    """Judges without a thread."""

    is_quick = True


def ask_in_turn(verifier: Verifier, *turns: object) -> list[list[Verdict]]:
    """For each turn: do it, then score the same samples through the service."""

    async def run() -> list[list[Verdict]]:
        server = VerifierServer({"safety": verifier})
        port = await server.start("127.0.0.1:0")
        client = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await client.start()
        found = []
        try:
            for turn in turns:
                if callable(turn):
                    turn()
                found.append(await client.score(SAMPLES))
                found[-1] += await client.score(SAMPLES[:1])
        finally:
            await client.close()
            await server.stop(0)
        return found

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("kind", [Moody, QuickMoody])
@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("database away"),
        UnjudgedError(InvalidCause.MALFORMED, "not a reply"),
        UnjudgedError(InvalidCause.UNAVAILABLE, "away", retryable=True),
    ],
)
def test_the_first_question_after_an_outage_is_judged_anew(
    kind: type[Moody], fault: Exception
) -> None:
    verifier = kind()
    first, second, third = ask_in_turn(
        verifier,
        lambda: setattr(verifier, "fault", fault),
        lambda: setattr(verifier, "fault", None),
        None,
    )
    assert {v.status for v in first} == {"invalid"}
    assert [v.score for v in second] == [1.0] * 3
    assert third == second
    assert verifier.num_judged == 6, "good answers are still kept"


def test_one_failure_among_good_verdicts_is_not_kept_either() -> None:
    verifier = Moody()
    verifier.fault, verifier.fails_on = RuntimeError("a bug"), "b"
    first, second = ask_in_turn(verifier, None, lambda: setattr(verifier, "fault", None))
    assert [v.score for v in first] == [1.0, None, 1.0]
    assert [v.score for v in second] == [1.0, 1.0, 1.0]


def test_who_asks_while_a_call_runs_shares_its_failure() -> None:
    class Failing(LengthVerifier):
        async def score(self, requests: object) -> list[Verdict]:
            self.num_calls += 1
            self.asked.release()
            assert self.gate is not None
            await self.gate.wait()
            raise RuntimeError("boom")

    verifier = Failing()

    async def run() -> None:
        verifier.gate = asyncio.Event()
        server = VerifierServer({"safety": verifier}, batching={})
        port = await server.start("127.0.0.1:0")
        client = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await client.start()
        try:
            calls = [asyncio.create_task(client.score(SAMPLES)) for _ in range(4)]
            await verifier.asked.acquire()
            await asyncio.sleep(0.2)
            verifier.gate.set()
            assert {v.cause for call in calls for v in await call} == {InvalidCause.ERROR}
            assert verifier.num_calls == 1
            await client.score(SAMPLES)
            assert verifier.num_calls == 2
        finally:
            await client.close()
            await server.stop(0)

    asyncio.run(asyncio.wait_for(run(), 60))
