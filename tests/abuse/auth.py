"""Who may call: every wrong way to present oneself, at every method that needs more than health.

``run`` tries all of them against real servers on loopback, and every wrong server against our own
client. An attempt counts as refused if it failed in the way it should; that honest callers are
served is part of the run, else refusing everything would look best.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cluster import wire
from cluster.protos import verifier_pb2
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import SERVICE, VerifierServer
from safeladder.config import TlsConfig
from safeladder.errors import SafeladderError
from tests.abuse.certificates import CLIENT, SERVER, Authority
from tests.abuse.outcome import Outcome, tally
from tests.cluster.verifier_fakes import LengthVerifier, make_request

TOKEN = "right"
CALL_S = 10.0
Metadata = tuple[tuple[str, str], ...]
GOOD_TOKEN: Metadata = (("authorization", f"Bearer {TOKEN}"),)
_REFUSING = {
    "no token": {grpc.StatusCode.UNAUTHENTICATED},
    "wrong token": {grpc.StatusCode.UNAUTHENTICATED},
    "token without scheme": {grpc.StatusCode.UNAUTHENTICATED},
    # Health streams are served to nobody.
    "wrong name on the certificate": {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    },
}
"""Others fail in the handshake, which gRPC calls UNAVAILABLE."""


@dataclass(frozen=True)
class Caller:
    """One way to knock."""

    kind: str
    credentials: grpc.ChannelCredentials | None
    """None is plain text."""
    metadata: Metadata = GOOD_TOKEN


def _ask(principle: str = "safety") -> dict[str, bytes]:
    body = wire.join_requests([wire.pack_request(make_request())])
    envelope = verifier_pb2.Envelope(
        schema_version=wire.SCHEMA_VERSION, principle=principle, payload=body
    )
    describe = verifier_pb2.DescribeRequest(schema_version=wire.SCHEMA_VERSION, principle=principle)
    reflect = reflection_pb2.ServerReflectionRequest(list_services="")
    watch = health_pb2.HealthCheckRequest(service=SERVICE)
    return {
        f"/{SERVICE}/Score": envelope.SerializeToString(),
        f"/{SERVICE}/Describe": describe.SerializeToString(),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": (
            reflect.SerializeToString()
        ),
        "/grpc.health.v1.Health/Watch": watch.SerializeToString(),
    }


def callers(ours: Authority, stranger: Authority) -> Iterator[Caller]:
    """Everybody who must not be served by a service with certificates and a token."""
    roots = ours.ca_file.read_bytes()

    def with_pair(pair: dict[str, Path]) -> grpc.ChannelCredentials:
        key, chain = pair["key_file"].read_bytes(), pair["cert_file"].read_bytes()
        return grpc.ssl_channel_credentials(roots, key, chain)

    good = with_pair(ours.pair(CLIENT))
    yield Caller("plain text to a TLS port", None)
    yield Caller("no client certificate", grpc.ssl_channel_credentials(roots))
    yield Caller("certificate of another authority", with_pair(stranger.pair(CLIENT)))
    yield Caller("expired certificate", with_pair(ours.pair(CLIENT, expired=True)))
    yield Caller("wrong name on the certificate", with_pair(ours.pair("other.test")))
    yield Caller("no token", good, ())
    yield Caller("wrong token", good, (("authorization", "Bearer wrong"),))
    yield Caller("token without scheme", good, (("authorization", TOKEN),))


async def knock(port: int, caller: Caller, method: str, body: bytes) -> grpc.StatusCode:
    """How a call ends."""
    options = [("grpc.ssl_target_name_override", SERVER), ("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{port}"
    if caller.credentials is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(address, caller.credentials, options)
    async with channel:
        call: Any = channel.unary_unary(method)
        try:
            await call(body, timeout=CALL_S, metadata=caller.metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def _try_callers(ours: Authority, stranger: Authority) -> list[tuple[str, bool]]:
    server = VerifierServer({"safety": LengthVerifier()}, token=TOKEN, tls=ours.server())
    port = await server.start("127.0.0.1:0")
    results = []
    try:
        client = next(c for c in callers(ours, stranger) if c.kind == "no token").credentials
        await _require_service(port, Caller("honest", client))
        for caller in callers(ours, stranger):
            expected = _REFUSING.get(caller.kind, {grpc.StatusCode.UNAVAILABLE})
            for method, body in _ask().items():
                code = await knock(port, caller, method, body)
                results.append((caller.kind, code in expected))
        await _require_service(port, Caller("honest", client))
    finally:
        await server.stop(0)
    return results


async def _require_service(port: int, caller: Caller) -> None:
    for method, body in _ask().items():
        code = await knock(port, caller, method, body)
        if code is not grpc.StatusCode.OK and "Watch" not in method:
            raise AssertionError(f"an honest caller is refused at {method}: {code}")


async def _try_servers(ours: Authority, stranger: Authority) -> list[tuple[str, bool]]:
    """Servers that our own client must not believe."""
    servers: Sequence[tuple[str, TlsConfig | None, TlsConfig]] = [
        ("server of another authority", stranger.server(), ours.client()),
        ("server with an expired certificate", ours.server(expired=True), ours.client()),
        ("server under another name", ours.server(name="other.test"), ours.client()),
        ("server that speaks plain text", None, ours.client()),
    ]
    results = []
    for kind, shown, client in servers:
        server = VerifierServer({"safety": LengthVerifier()}, tls=shown)
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            await GrpcVerifier("safety", address, CALL_S, tls=client).start()
        except SafeladderError:
            results.append((kind, True))
        else:
            results.append((kind, False))
        finally:
            await server.stop(0)
    return results


def run() -> list[Outcome]:
    """Try everybody. Raises ``AssertionError`` if an honest caller is not served."""
    with tempfile.TemporaryDirectory() as folder:
        ours, stranger = Authority(Path(folder)), Authority(Path(folder), "stranger")

        async def attempts() -> list[tuple[str, bool]]:
            return await _try_callers(ours, stranger) + await _try_servers(ours, stranger)

        return tally(asyncio.run(attempts()))
