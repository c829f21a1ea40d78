"""Something listens and no channel comes up: the sentence names the key to look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from safeladder.config import TlsConfig
from safeladder.errors import ConfigError, VerifierUnavailableError
from tests.abuse.certificates import CLIENT, SERVER, Authority
from tests.cluster.verifier_fakes import LengthVerifier

pytestmark = pytest.mark.process

WHERE = "principles.safety.service"
Both = Callable[[Authority, Authority], TlsConfig | None]


async def refusal(address: str, tls: TlsConfig | None) -> str:
    with pytest.raises((ConfigError, VerifierUnavailableError)) as caught:
        await GrpcVerifier("safety", address, 20, tls=tls).start()
    return f"{caught.value.exit_code} {caught.value}"


def with_ca(authority: Authority, pair: dict[str, Path]) -> TlsConfig:
    return TlsConfig(ca_file=authority.ca_file, server_name=SERVER, **pair)


@pytest.mark.parametrize(
    ("shown", "asked", "told"),
    [
        (
            lambda ours, _: ours.server(),
            lambda ours, stranger: with_ca(stranger, ours.pair(CLIENT)),
            f"2 {WHERE}.tls.ca_file: something listens at ADDRESS, but the connection cannot be "
            "secured: its certificate is not signed by an authority of ",
        ),
        (
            lambda ours, _: ours.server(),
            lambda ours, _: with_ca(ours, {}),
            f"2 {WHERE}.tls.cert_file: something listens at ADDRESS, but the connection cannot be "
            "secured: it ends the connection of a client without a certificate",
        ),
        (
            lambda ours, _: ours.server(),
            lambda ours, stranger: with_ca(ours, stranger.pair(CLIENT)),
            f"2 {WHERE}.tls.cert_file: something listens at ADDRESS, but the connection cannot be "
            "secured: it refuses the certificate ",
        ),
        (
            lambda ours, _: ours.server(),
            lambda ours, _: ours.client(server_name="other.test"),
            f"2 {WHERE}.tls.server_name: something listens at ADDRESS, but the connection cannot "
            "be secured: its certificate does not carry the name 'other.test'",
        ),
        (
            lambda ours, _: ours.server(),
            lambda *_: None,
            f"2 {WHERE}.tls: something listens at ADDRESS, but the connection cannot be secured: "
            "it speaks TLS and this side plain text",
        ),
        (
            lambda *_: None,
            lambda ours, _: ours.client(),
            f"2 {WHERE}.tls: something listens at ADDRESS, but the connection cannot be secured: "
            "it does not speak TLS",
        ),
        (
            lambda ours, _: ours.server(expired=True),
            lambda ours, _: ours.client(),
            f"4 {WHERE}: something listens at ADDRESS, but the connection cannot be secured: "
            "certificate has expired; renew",
        ),
    ],
)
def test_a_handshake_that_fails_names_its_key(
    shown: Both, asked: Both, told: str, tmp_path: Path
) -> None:
    ours, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")

    async def run() -> tuple[str, str]:
        server = VerifierServer({"safety": LengthVerifier()}, tls=shown(ours, stranger))
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            return address, await refusal(address, asked(ours, stranger))
        finally:
            await server.stop(0)

    address, said = asyncio.run(run())
    assert said.startswith(told.replace("ADDRESS", address))
    assert "serve-verifier" not in said


@pytest.mark.parametrize("is_secured", [False, True])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_stranger_at_the_address_is_told_from_nobody(
    is_secured: bool, answer: bytes, tmp_path: Path
) -> None:
    tls = Authority(tmp_path).client() if is_secured else None

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answer:
            writer.write(answer)
            writer.close()

    async def run() -> str:
        stranger = await asyncio.start_server(reply, "127.0.0.1", 0)
        port = stranger.sockets[0].getsockname()[1]
        began_s = time.monotonic()
        said = await refusal(f"127.0.0.1:{port}", tls)
        assert time.monotonic() - began_s < 9
        stranger.close()
        return said

    said = asyncio.run(run())
    assert "something listens at 127.0.0.1:" in said
    assert f"{WHERE}.tls" in said
    assert "serve-verifier" not in said
