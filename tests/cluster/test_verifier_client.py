"""The client: verdicts come only from complete, matching answers; every failure is INVALID."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import msgpack
import pytest

from cluster import wire
from cluster.protos import verifier_pb2, verifier_pb2_grpc
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest, Verdict
from tests.cluster.verifier_fakes import LengthVerifier, make_request

pytestmark = pytest.mark.process

REQUESTS = [make_request(i, "x" * 10 * i) for i in range(3)]


def with_service(
    verifier: LengthVerifier,
    scenario: Callable[[GrpcVerifier, VerifierServer, str], Awaitable[None]],
    *,
    timeout_s: float = 20.0,
    **options: Any,
) -> None:
    async def run() -> None:
        server = VerifierServer({"safety": verifier}, **options)
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        client = GrpcVerifier("safety", address, timeout_s)
        await client.start()
        try:
            await asyncio.wait_for(scenario(client, server, address), 60)
        finally:
            await client.close()
            await server.stop(0)

    asyncio.run(run())


def assert_invalid(verdicts: list[Verdict], cause: InvalidCause, *, retryable: bool) -> None:
    assert [v.sample_id for v in verdicts] == [r.sample_id for r in REQUESTS]
    for verdict in verdicts:
        assert verdict.status == "invalid"
        assert verdict.score is None
        assert (verdict.cause, verdict.retryable) == (cause, retryable)
        assert verdict.evidence


def test_a_round_trip_brings_the_verifier_s_own_verdicts() -> None:
    verifier = LengthVerifier(version="2.0")

    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        assert (client.name, client.version) == ("tests:LengthVerifier", "2.0")
        assert await client.score(REQUESTS) == await verifier.score(REQUESTS)
        assert await client.score([]) == []

    with_service(verifier, scenario)


def test_a_batch_above_the_size_of_a_message_goes_out_as_several_calls_in_order() -> None:
    verifier = LengthVerifier()
    big = [make_request(i, "x" * i, images=(b"i" * 1_500_000,)) for i in range(5)]
    unsendable = make_request(9, images=(b"i" * 5_000_000,))

    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        verdicts = await client.score([unsendable, *big])
        assert [v.score for v in verdicts[1:]] == [i / 100 for i in range(5)]
        assert [v.evidence for v in verdicts[1:]] == ["1 images"] * 5
        assert (verdicts[0].status, verdicts[0].cause) == ("invalid", "error")
        assert verifier.num_calls == 3

    with_service(verifier, scenario)


def test_a_slow_verifier_is_a_timeout_that_may_be_tried_again() -> None:
    verifier = LengthVerifier()

    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        verifier.gate = asyncio.Event()
        assert_invalid(await client.score(REQUESTS), InvalidCause.TIMEOUT, retryable=True)

    with_service(verifier, scenario, timeout_s=0.3)


def test_a_service_that_goes_away_is_unavailable_until_it_is_back_on_its_port() -> None:
    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        await server.stop(0)
        assert_invalid(await client.score(REQUESTS), InvalidCause.UNAVAILABLE, retryable=True)
        again = VerifierServer({"safety": LengthVerifier(version="2")})
        await again.start(address)
        try:
            verdicts = await client.score(REQUESTS)
            while verdicts[0].status == "invalid":
                assert_invalid(verdicts, InvalidCause.UNAVAILABLE, retryable=True)
                verdicts = await client.score(REQUESTS)
            assert [v.score for v in verdicts] == [0.0, 0.1, 0.2]
            assert {v.verifier_version for v in verdicts} == {"2"}, "as the new service says"
            assert client.version == "2"
        finally:
            await again.stop(0)

    with_service(LengthVerifier(), scenario)


def test_a_shed_call_is_unavailable_and_may_be_tried_again() -> None:
    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        verdicts = await client.score(REQUESTS)
        assert_invalid(verdicts, InvalidCause.UNAVAILABLE, retryable=True)
        assert "OVERLOADED" in (verdicts[0].evidence or "")

    with_service(LengthVerifier(), scenario, max_concurrent=0)


def test_nobody_at_the_address_is_one_sentence_with_the_way_out() -> None:
    async def run() -> None:
        with pytest.raises(VerifierUnavailableError, match=r"127\.0\.0\.1:1 .*serve-verifier"):
            await GrpcVerifier("safety", "127.0.0.1:1", 20).start()

    asyncio.run(run())


def test_a_host_that_accepts_and_never_answers_is_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr("cluster.verifier_client.CONNECT_DEADLINE_S", 0.3)

    async def run() -> None:
        silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(VerifierUnavailableError, match=f"127.0.0.1:{port}"):
            await GrpcVerifier("safety", f"127.0.0.1:{port}", 20).start()
        silent.close()

    asyncio.run(run())


def test_a_principle_that_is_not_served_is_an_error_of_the_config() -> None:
    async def scenario(client: GrpcVerifier, server: VerifierServer, address: str) -> None:
        with pytest.raises(ConfigError, match=r"principles\.charm.*serves: safety"):
            await GrpcVerifier("charm", address, 20).start()

    with_service(LengthVerifier(), scenario)


def test_the_token_file_opens_the_door_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("secret\n")
    wrong.write_text("guess\n")

    async def run() -> None:
        server = VerifierServer({"safety": LengthVerifier()}, token="secret")
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            for token_file in (None, wrong):
                with pytest.raises(ConfigError, match=r"service\.token_file.*refuses") as caught:
                    await GrpcVerifier("safety", address, 20, token_file).start()
                assert "guess" not in str(caught.value)
            with pytest.raises(ConfigError, match="missing"):
                await GrpcVerifier("safety", address, 20, tmp_path / "missing").start()
            client = GrpcVerifier("safety", address, 20, token_file=right)
            await client.start()
            assert [v.score for v in await client.score(REQUESTS)] == [0.0, 0.1, 0.2]
            await client.close()
        finally:
            await server.stop(0)

    asyncio.run(run())


class Rogue:
    """A server that speaks the protocol and lies: ``lie`` changes the honest answer."""

    def __init__(self, lie: Callable[[Any, dict[str, Any]], bytes | None]) -> None:
        self.lie = lie

    async def Describe(self, request: Any, context: Any) -> Any:
        return verifier_pb2.DescribeResponse(
            schema_version=wire.SCHEMA_VERSION,
            principle=request.principle,
            verifier="rogue",
            verifier_version="1",
        )

    async def Score(self, request: Any, context: Any) -> Any:
        verdicts = [LengthVerifier().verdict(r) for r in wire.unpack_requests(request.payload)]
        digest = wire.body_digest(request.payload)
        body = msgpack.unpackb(wire.pack_answer(digest, "rogue", "1", verdicts))
        reply = verifier_pb2.Envelope()
        reply.CopyFrom(request)
        payload = self.lie(reply, body)
        reply.payload = msgpack.packb(body) if payload is None else payload
        return reply


def ask_rogue(
    lie: Callable[[Any, dict[str, Any]], bytes | None], requests: Sequence[ScoreRequest] = REQUESTS
) -> list[Verdict]:
    async def run() -> list[Verdict]:
        server = grpc.aio.server()
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(Rogue(lie), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await client.start()
        try:
            return await client.score(requests)
        finally:
            await client.close()
            await server.stop(0)

    return asyncio.run(run())


def test_a_batch_of_several_calls_that_two_versions_answer_is_asked_again() -> None:
    images = (b"i" * 2_500_000,)
    requests = [make_request(0, "x", images=images), make_request(1, "x", images=images)]
    requests.append(make_request(2, images=images * 2))  # more than a message holds

    def answered_by(versions: Iterator[str]) -> list[Verdict]:
        return ask_rogue(lambda _, body: body.update(verifier_version=next(versions)), requests)

    mixed = answered_by(iter(("1", "2")))
    assert [(v.score, v.cause, v.retryable) for v in mixed] == [
        (None, InvalidCause.UNAVAILABLE, True),
        (None, InvalidCause.UNAVAILABLE, True),
        (None, InvalidCause.ERROR, False),
    ]
    assert mixed[0].evidence == "one batch was judged by rogue version 1 and rogue version 2"
    assert len({v.verifier_version for v in mixed}) == 1
    new = answered_by(iter(("2", "2")))
    assert [v.score for v in new] == [0.01, 0.01, None]
    assert {v.verifier_version for v in new} == {"2"}, "of the failure too"


def _set_score(value: object) -> Callable[[Any, dict[str, Any]], None]:
    return lambda reply, body: body["verdicts"][1].update(score=value)


LIES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "too few verdicts": lambda reply, body: body["verdicts"].pop() and None,
    "too many verdicts": lambda reply, body: body["verdicts"].append(body["verdicts"][0]),
    "swapped verdicts": lambda reply, body: body["verdicts"].reverse(),
    "answer to another question": lambda reply, body: body.update(request_sha256="0" * 64),
    "score above one": _set_score(1.5),
    "score below zero": _set_score(-0.1),
    "score not a number": _set_score(math.nan),
    "score missing": _set_score(None),
    "score as text": _set_score("1.0"),
    "unknown field": lambda reply, body: body.update(reward=1.0),
    "no MessagePack": lambda reply, body: b"<html>",
    "empty body": lambda reply, body: b"",
    "truncated": lambda reply, body: msgpack.packb(body)[:-3],
    "another call": lambda reply, body: setattr(reply, "request_id", "other"),
    "another principle": lambda reply, body: setattr(reply, "principle", "helpfulness"),
    "another schema": lambda reply, body: setattr(reply, "schema_version", wire.SCHEMA_VERSION + 1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_service_is_malformed_and_never_a_number(lie: str) -> None:
    assert_invalid(ask_rogue(LIES[lie]), InvalidCause.MALFORMED, retryable=False)


def test_the_same_rogue_without_a_lie_is_believed() -> None:
    assert [v.score for v in ask_rogue(lambda reply, body: None)] == [0.0, 0.1, 0.2]


def test_bytes_that_are_no_message_at_all_are_malformed() -> None:
    async def garbage(request: bytes, context: Any) -> bytes:
        return b"\xff\xff\xff"

    class Garbage(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(garbage)

    async def run() -> None:
        honest = VerifierServer({"safety": LengthVerifier()})
        port = await honest.start("127.0.0.1:0")
        client = GrpcVerifier("safety", f"127.0.0.1:{port}", 20)
        await client.start()
        await honest.stop(0)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Garbage(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        verdicts = await client.score(REQUESTS)
        while verdicts[0].cause == "unavailable":
            verdicts = await client.score(REQUESTS)
        assert_invalid(verdicts, InvalidCause.MALFORMED, retryable=False)
        with pytest.raises(VerifierUnavailableError, match="not a message"):
            await GrpcVerifier("safety", f"127.0.0.1:{port}", 20).start()
        await client.close()
        await server.stop(0)

    asyncio.run(asyncio.wait_for(run(), 60))
