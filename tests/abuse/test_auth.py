"""Nobody gets in who should not, at any method; and a bad certificate file is one sentence."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from safeladder.config import TlsConfig
from safeladder.errors import ConfigError
from tests.abuse import auth
from tests.abuse.certificates import Authority
from tests.cluster.verifier_fakes import LengthVerifier, make_request

pytestmark = pytest.mark.process


def test_everybody_of_the_matrix_is_refused_and_honest_callers_are_served() -> None:
    outcomes = auth.run()
    assert [outcome for outcome in outcomes if not outcome.is_contained] == []
    assert len(outcomes) >= 12
    assert sum(outcome.tried for outcome in outcomes) >= 36


def test_a_client_with_the_right_certificate_and_token_gets_verdicts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text("secret")

    async def run() -> list[float | None]:
        server = VerifierServer(
            {"safety": LengthVerifier()}, token="secret", tls=authority.server()
        )
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        client = GrpcVerifier("safety", address, 20, token_file, tls=authority.client())
        try:
            await client.start()
            return [verdict.score for verdict in await client.score([make_request(0, "x" * 50)])]
        finally:
            await client.close()
            await server.stop(0)

    assert asyncio.run(run()) == [0.5]


def test_a_token_over_tls_needs_no_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    token_file = tmp_path / "token"
    token_file.write_text("secret")
    simple = TlsConfig(ca_file=authority.ca_file)

    async def run() -> None:
        tls = TlsConfig(**authority.pair("127.0.0.1"))
        server = VerifierServer({"safety": LengthVerifier()}, token="secret", tls=tls)
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            with pytest.raises(ConfigError, match="refuses the token"):
                await GrpcVerifier("safety", address, 20, tls=simple).start()
            client = GrpcVerifier("safety", address, 20, token_file, tls=simple)
            await client.start()
            await client.close()
        finally:
            await server.stop(0)

    asyncio.run(run())


def test_a_client_whose_name_is_not_served_learns_which_key_to_change(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def run() -> None:
        server = VerifierServer({"safety": LengthVerifier()}, tls=authority.server())
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            tls = authority.client(name="other.test")
            with pytest.raises(ConfigError, match=r"principles\.safety\.service\.tls\.cert_file"):
                await GrpcVerifier("safety", address, 20, tls=tls).start()
        finally:
            await server.stop(0)

    asyncio.run(run())


def bad_files(folder: Path) -> list[tuple[dict[str, object], str]]:
    authority = Authority(folder)
    good, other = authority.pair("a.test"), authority.pair("b.test")
    text, broken = folder / "text", folder / "broken"
    text.write_text("no certificate")
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return [
        ({}, r"cert_file: a service needs"),
        ({**good, "cert_file": folder / "none"}, r"cert_file: .*none cannot be read \(No such"),
        ({**good, "key_file": folder}, r"key_file: .* cannot be read \(Is a dir"),
        ({**good, "cert_file": text}, r"cert_file: .*text holds no PEM certificate"),
        ({**good, "key_file": text}, r"key_file: .*text holds no PEM private key"),
        ({**good, "key_file": other["key_file"]}, r"key_file: .* is not the key of"),
        ({**good, "cert_file": broken}, r"key_file: .* are not an unencrypted key"),
        ({**good, "ca_file": authority.ca_file}, r"allowed_names: list the names"),
        ({**good, "ca_file": text, "allowed_names": ("a",)}, r"ca_file: .*text holds no PEM"),
        ({**good, "ca_file": broken, "allowed_names": ("a",)}, r"ca_file: .*broken certificate"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_a_certificate_that_cannot_be_used_is_named_by_its_key(tmp_path: Path, case: int) -> None:
    fields, words = bad_files(tmp_path)[case]
    server = VerifierServer({}, tls=TlsConfig.model_validate(fields), where="principles.p.service")
    with pytest.raises(ConfigError, match=rf"^principles\.p\.service\.tls\.{words}"):
        asyncio.run(server.start("127.0.0.1:0"))


def test_half_a_pair_is_refused_by_the_config() -> None:
    with pytest.raises(ValueError, match="go together"):
        TlsConfig(cert_file=Path("a"))


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        (None, r"service\.tls: .* plain text.*principles\.safety\.service\.insecure: true"),
        (TlsConfig(), r"service\.tls\.ca_file"),
        (TlsConfig(ca_file=Path("no-such-file")), r"ca_file: no-such-file cannot be read"),
    ],
)
def test_a_client_does_not_speak_to_another_machine_unprotected(
    tls: TlsConfig | None, words: str
) -> None:
    async def run() -> None:
        await GrpcVerifier("safety", "192.0.2.1:1", 20, tls=tls).start()

    with pytest.raises(ConfigError, match=words):
        asyncio.run(run())
