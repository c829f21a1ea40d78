"""Hostile bytes in both directions, over real gRPC on loopback.

``run`` sends every hostile request to a service and every hostile answer to a client. A request
counts as refused if it ends with a code of its own (INTERNAL or a deadline would be a crash or a
hang), an answer if each of its verdicts is INVALID and carries no number. An honest call is made
before and after: a part that refuses everything, or nothing any more, fails the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import msgpack

from cluster import wire
from cluster.protos import verifier_pb2
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import SERVICE, VerifierServer
from safeladder.records import Verdict, VerdictStatus
from tests.abuse import hostile_answers, hostile_requests
from tests.abuse.hostile_answers import Lie
from tests.abuse.outcome import Outcome, tally
from tests.cluster.verifier_fakes import LengthVerifier, make_request

CALL_S = 20.0
REFUSING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own, for messages above 4 MiB
    }
)
SAMPLES = [make_request(i, "x" * 10 * i) for i in range(3)]
HONEST = [0.0, 0.1, 0.2]


def requests() -> Iterator[tuple[str, bytes]]:
    """(class, bytes of an envelope) of every hostile request."""
    for kind, make in hostile_requests.CLASSES.items():
        yield from ((kind, raw) for raw in make())


def answers() -> Iterator[tuple[str, Lie]]:
    """(class, lie) of every hostile answer."""
    for kind, make in hostile_answers.CLASSES.items():
        yield from ((kind, lie) for lie in make())


async def _require_service(port: int) -> None:
    client = GrpcVerifier("safety", f"127.0.0.1:{port}", CALL_S)
    await client.start()
    scores = [verdict.score for verdict in await client.score(SAMPLES)]
    await client.close()
    if scores != HONEST:
        raise AssertionError(f"an honest call is not served: {scores}")


async def try_requests() -> list[tuple[str, bool]]:
    """Every hostile request against one service."""
    server = VerifierServer({"safety": LengthVerifier()})
    port = await server.start("127.0.0.1:0")
    results = []
    try:
        await _require_service(port)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(f"/{SERVICE}/Score")
            for kind, raw in requests():
                try:
                    await call(raw, timeout=CALL_S)
                    results.append((kind, False))
                except grpc.aio.AioRpcError as error:
                    results.append((kind, error.code() in REFUSING))
        await _require_service(port)
    finally:
        await server.stop(0)
    return results


class Rogue(grpc.GenericRpcHandler):
    """A server that speaks the protocol and lies."""

    def __init__(self) -> None:
        self.lie: Lie | None = None

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        is_score = details.method.endswith("Score")
        return grpc.unary_unary_rpc_method_handler(self._score if is_score else self._describe)

    async def _describe(self, raw: bytes, context: Any) -> bytes:
        request = verifier_pb2.DescribeRequest.FromString(raw)
        return bytes(
            verifier_pb2.DescribeResponse(
                schema_version=wire.SCHEMA_VERSION,
                principle=request.principle,
                verifier="r",
                verifier_version="1",
            ).SerializeToString()
        )

    async def _score(self, raw: bytes, context: Any) -> bytes:
        reply = verifier_pb2.Envelope.FromString(raw)
        judge = LengthVerifier()
        verdicts = [judge.verdict(one) for one in wire.unpack_requests(reply.payload)]
        payload = wire.pack_answer(wire.body_digest(reply.payload), "r", "1", verdicts)
        if self.lie is None:
            reply.payload = payload
            return bytes(reply.SerializeToString())
        return self.lie(reply, msgpack.unpackb(payload))


async def try_answers() -> list[tuple[str, bool]]:
    """Every hostile answer against one client."""
    rogue = Rogue()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((rogue,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = GrpcVerifier("safety", f"127.0.0.1:{port}", CALL_S, fence=3)
    await client.start()
    results = []
    try:
        await _require_service(port)
        for kind, rogue.lie in answers():
            verdicts = await client.score(SAMPLES)
            results.append((kind, len(verdicts) == len(SAMPLES) and all(map(_is_void, verdicts))))
        rogue.lie = None
        await _require_service(port)
    finally:
        await client.close()
        await server.stop(0)
    return results


def _is_void(verdict: Verdict) -> bool:
    return verdict.status is VerdictStatus.INVALID and verdict.score is None


def run() -> list[Outcome]:
    """Try everything. Raises ``AssertionError`` if an honest call is not served."""

    async def attempts() -> list[tuple[str, bool]]:
        return await try_requests() + await try_answers()

    return tally(asyncio.run(attempts()))
