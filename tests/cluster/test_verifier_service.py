"""The service over real loopback gRPC: it scores, shares work, refuses with a reason, survives."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgpack
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from cluster import wire
from cluster.protos import verifier_pb2, verifier_pb2_grpc
from cluster.verifier_refusals import Reason
from cluster.verifier_service import SERVICE, VerifierServer
from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.records import InvalidCause, ScoreRequest
from tests.cluster.verifier_fakes import FailingVerifier, LengthVerifier, make_request

Scenario = Callable[[grpc.aio.Channel, Any], Awaitable[None]]


def serve(verifier: LengthVerifier | RuleVerifier, scenario: Scenario, **options: Any) -> None:
    """Run the scenario (channel, stub) against a service of ``verifier`` on a free port."""

    async def run() -> None:
        server = VerifierServer({verifier.principle: verifier}, **options)
        port = await server.start("127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = verifier_pb2_grpc.VerifierServiceStub(channel)
                await asyncio.wait_for(scenario(channel, stub), 30)
        finally:
            await server.stop(0)

    asyncio.run(run())


def body_of(*responses: str) -> bytes:
    requests = [make_request(i, response) for i, response in enumerate(responses)]
    return wire.join_requests([wire.pack_request(request) for request in requests])


def envelope(payload: bytes, **fields: Any) -> Any:
    defaults = {
        "schema_version": wire.SCHEMA_VERSION,
        "request_id": "r1",
        "idempotency_key": "k1",
        "fence": 3,
        "principle": "safety",
        "payload": payload,
    }
    return verifier_pb2.Envelope(**{**defaults, **fields})


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and text of a call that must fail with a rich status of ours."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "safeladder"
    return caught.value.code(), info.reason, caught.value.details() or ""


def test_a_batch_is_scored_and_the_answer_echoes_the_question() -> None:
    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        body = body_of("x" * 50, "x" * 200)
        reply = await stub.Score(envelope(body), timeout=10)
        answer = wire.unpack_answer(reply.payload, "safety")
        assert [verdict.score for verdict in answer.verdicts] == [0.5, 1.0]
        assert answer.request_sha256 == wire.body_digest(body)
        assert (answer.verifier, answer.verifier_version) == ("tests:LengthVerifier", "1")
        assert (reply.request_id, reply.fence, reply.principle) == ("r1", 3, "safety")

    verifier = LengthVerifier()
    serve(verifier, scenario)
    assert verifier.is_closed


def test_describe_health_and_reflection_answer() -> None:
    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        request = verifier_pb2.DescribeRequest(
            schema_version=wire.SCHEMA_VERSION, principle="safety"
        )
        described = await stub.Describe(request, timeout=10)
        assert (described.verifier, described.verifier_version) == ("tests:LengthVerifier", "1")
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        state = await health_pb2_grpc.HealthStub(channel).Check(check, timeout=10)
        assert state.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([ask]), timeout=10
        )
        listed = await stream.read()
        assert SERVICE in [service.name for service in listed.list_services_response.service]

    serve(LengthVerifier(), scenario)


def test_equal_calls_share_one_execution_while_it_runs_and_after() -> None:
    verifier = LengthVerifier()

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        verifier.gate = asyncio.Event()
        calls = [
            asyncio.ensure_future(stub.Score(envelope(body_of("a")), timeout=20)) for _ in range(5)
        ]
        other = asyncio.ensure_future(stub.Score(envelope(body_of("b")), timeout=20))
        for _ in range(2):
            await verifier.asked.acquire()
        verifier.gate.set()
        payloads = {(await call).payload for call in calls}
        payloads.add((await stub.Score(envelope(body_of("a")), timeout=20)).payload)
        assert len(payloads) == 1
        assert (await other).payload not in payloads, "a reused key never brings another's answer"
        assert verifier.num_calls == 2

    serve(verifier, scenario)


def test_a_caller_that_goes_away_finds_the_result_when_it_comes_back() -> None:
    verifier = LengthVerifier()

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        verifier.gate = asyncio.Event()
        call = stub.Score(envelope(body_of("a")), timeout=20)
        waiter = asyncio.ensure_future(call)
        await verifier.asked.acquire()
        call.cancel()
        await asyncio.wait({waiter})
        verifier.gate.set()
        await stub.Score(envelope(body_of("a")), timeout=20)
        assert verifier.num_calls == 1

    serve(verifier, scenario)


def test_a_verifier_that_is_too_slow_is_invalid_and_is_asked_again_next_time() -> None:
    verifier = LengthVerifier()

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        verifier.gate = asyncio.Event()
        reply = await stub.Score(envelope(body_of("a")), timeout=0.4)
        (verdict,) = wire.unpack_answer(reply.payload, "safety").verdicts
        assert (verdict.status, verdict.cause, verdict.score) == ("invalid", "timeout", None)
        verifier.gate.set()
        reply = await stub.Score(envelope(body_of("a")), timeout=20)
        (verdict,) = wire.unpack_answer(reply.payload, "safety").verdicts
        assert verdict.score == 0.01

    serve(verifier, scenario)


def test_every_refusal_carries_its_reason_and_the_service_goes_on() -> None:
    good = body_of("a")
    fields = msgpack.unpackb(good)["requests"][0]
    nan = msgpack.packb({"requests": [{**fields, "meta": {"a": math.nan}}]})
    twice = msgpack.packb({"requests": [{**fields, "meta": "PLACE"}]})
    twice = twice.replace(b"\xa5PLACE", b"\x82\xa1a\x01\xa1a\x02")

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        async def score(payload: bytes, **changes: Any) -> tuple[grpc.StatusCode, str, str]:
            return await refusal(stub.Score(envelope(payload, **changes), timeout=10))

        for payload, word in [
            (good[:-1], "truncated"),
            (nan, "meta.a"),
            (twice, "duplicate"),
            (b"\x91" * 100_000, "array"),
            (b"\xdd\x00\x0f\x42\x40" + b"\x90" * 1_000_000, "array"),
            (b"", "truncated"),
        ]:
            code, reason, text = await score(payload)
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.MALFORMED_BODY)
            assert word in text
        assert (await score(good, schema_version=9))[1] == Reason.UNKNOWN_SCHEMA_VERSION
        code, reason, text = await score(good, principle="charm")
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_PRINCIPLE)
        assert "safety" in text
        raw = channel.unary_unary(f"/{SERVICE}/Score")
        assert (await refusal(raw(b"\xff\xff", timeout=10)))[1] == Reason.MALFORMED_BODY
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(envelope(b"x" * 5_000_000), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reply = await stub.Score(envelope(good), timeout=10)
        assert wire.unpack_answer(reply.payload, "safety").verdicts[0].score == 0.01

    serve(LengthVerifier(), scenario)


def test_an_exception_inside_the_service_does_not_leave_it() -> None:
    class Broken(LengthVerifier):
        @property
        def name(self) -> str:
            raise RuntimeError("boom")

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        code, reason, text = await refusal(stub.Score(envelope(body_of("a")), timeout=10))
        assert (code, reason) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
        assert "boom" not in text
        assert "Error" not in text

    serve(Broken(), scenario)


def test_a_failing_verifier_is_an_invalid_verdict_and_no_error_of_the_call() -> None:
    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        reply = await stub.Score(envelope(body_of("a", "b")), timeout=10)
        verdicts = wire.unpack_answer(reply.payload, "safety").verdicts
        assert [(v.status, v.cause, v.score) for v in verdicts] == [("invalid", "error", None)] * 2

    serve(FailingVerifier(), scenario)


def test_more_calls_than_allowed_are_shed_with_a_time_to_come_back() -> None:
    verifier = LengthVerifier()

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        verifier.gate = asyncio.Event()
        first = asyncio.ensure_future(stub.Score(envelope(body_of("a")), timeout=20))
        await verifier.asked.acquire()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Score(envelope(body_of("b")), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(caught.value).details[1].Unpack(retry)
        assert retry.retry_delay.seconds > 0
        verifier.gate.set()
        await first
        await stub.Score(envelope(body_of("b")), timeout=10)

    serve(verifier, scenario, max_concurrent=1)


def test_a_call_that_cannot_end_in_its_time_is_shed_while_others_run() -> None:
    verifier = LengthVerifier()

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        async def score(response: str, timeout: float) -> Any:
            message = envelope(body_of(response), idempotency_key=response)
            return await stub.Score(message, timeout=timeout)

        verifier.gate = asyncio.Event()
        slow = asyncio.ensure_future(score("a", 20))
        await verifier.asked.acquire()
        await asyncio.sleep(0.5)
        verifier.gate.set()
        await slow  # calls take half a second, as far as the service knows
        await score("b", 0.2)  # nobody else runs: let in, to learn something newer
        verifier.gate.clear()
        verifier.asked = asyncio.Semaphore(0)
        running = asyncio.ensure_future(score("c", 20))
        await verifier.asked.acquire()
        code, reason, text = await refusal(score("d", 0.2))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.OVERLOADED)
        assert "s are left" in text
        patient = asyncio.ensure_future(score("e", 20))
        await verifier.asked.acquire()
        verifier.gate.set()
        await asyncio.gather(running, patient)

    serve(verifier, scenario)


def test_a_rule_s_answer_is_kept_too() -> None:
    class Rule(RuleVerifier):
        num_judged = 0

        def judge(self, request: ScoreRequest) -> Judgment:
            self.num_judged += 1
            if request.response == "bad":
                raise UnjudgedError(InvalidCause.UNAVAILABLE, "away", retryable=True)
            return Judgment(0.25)

    rule = Rule("safety", {})

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        for response, num_judged in (("a", 1), ("a", 1), ("bad", 2), ("bad", 3)):
            reply = await stub.Score(envelope(body_of(response)), timeout=10)
            (verdict,) = wire.unpack_answer(reply.payload, "safety").verdicts
            assert rule.num_judged == num_judged
            assert verdict.score == (0.25 if response == "a" else None)
        reply = await stub.Score(envelope(body_of("a"), idempotency_key=""), timeout=10)
        assert wire.unpack_answer(reply.payload, "safety").verdicts[0].score == 0.25
        assert rule.num_judged == 4, "without a key nothing is kept"

    serve(rule, scenario)


def test_a_large_body_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    on_main: list[bool] = []
    read = wire.unpack_requests

    def watched(body: bytes) -> list[ScoreRequest]:
        on_main.append(threading.current_thread() is threading.main_thread())
        return read(body)

    monkeypatch.setattr(wire, "unpack_requests", watched)

    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        for response in ("a", "a" * 100_000):
            await stub.Score(envelope(body_of(response)), timeout=10)
        assert (await refusal(stub.Score(envelope(b"\xc1" * 100_000), timeout=10)))[1]
        assert on_main == [True, False, False]

    serve(LengthVerifier(), scenario)


def test_calls_of_one_principle_share_a_batch_and_principles_never_mix() -> None:
    verifiers = {name: LengthVerifier(name) for name in ("safety", "charm")}

    async def run() -> None:
        server = VerifierServer(verifiers, batching=dict.fromkeys(verifiers, (3, 10.0)))
        port = await server.start("127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = verifier_pb2_grpc.VerifierServiceStub(channel)
                calls = [
                    stub.Score(envelope(body_of("x" * i), principle=name), timeout=20)
                    for i in range(3)
                    for name in verifiers
                ]
                replies = [await call for call in calls]
        finally:
            await server.stop(0)
        answers = [wire.unpack_answer(reply.payload, "any").verdicts for reply in replies]
        assert [verdict.score for (verdict,) in answers] == [0.0, 0.0, 0.01, 0.01, 0.02, 0.02]
        assert [verifier.num_calls for verifier in verifiers.values()] == [1, 1]

    asyncio.run(asyncio.wait_for(run(), 30))


def test_only_the_right_token_is_served_and_health_stays_open() -> None:
    async def scenario(channel: grpc.aio.Channel, stub: Any) -> None:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "right"),)):
            call = stub.Score(envelope(body_of("a")), timeout=10, metadata=metadata)
            code, reason, _ = await refusal(call)
            assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, Reason.UNAUTHENTICATED)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
        with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
            await stream.read()
        await stub.Score(
            envelope(body_of("a")), timeout=10, metadata=(("authorization", "Bearer right"),)
        )
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        await health_pb2_grpc.HealthStub(channel).Check(check, timeout=10)

    serve(LengthVerifier(), scenario, token="right")


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    async def run() -> None:
        first, second = (VerifierServer({"safety": LengthVerifier()}) for _ in range(2))
        port = await first.start("127.0.0.1:0")
        try:
            with pytest.raises(EnvironmentUnfitError, match=rf"{port} is in use.*--bind"):
                await second.start(f"127.0.0.1:{port}")
        finally:
            await second.stop(0)
            await first.stop(0)

    asyncio.run(run())


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50051", "example.org:1"])
def test_plain_text_off_loopback_needs_an_explicit_word(bind: str) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        asyncio.run(VerifierServer({}).start(bind))


@pytest.mark.parametrize("bind", ["50051", "127.0.0.1", "127.0.0.1:http", ":1", "127.0.0.1:70000"])
def test_an_address_without_host_and_port_is_refused(bind: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        asyncio.run(VerifierServer({}).start(bind))


def test_a_verifier_that_does_not_start_leaves_no_server_behind(tmp_path: Path) -> None:
    class Unstartable(LengthVerifier):
        async def start(self) -> None:
            raise ConfigError("no such model")

    async def run() -> None:
        failing = VerifierServer({"safety": Unstartable()})
        with pytest.raises(ConfigError, match="no such model"):
            await failing.start("127.0.0.1:0")

    asyncio.run(run())
