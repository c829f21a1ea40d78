"""Certificates of a verifier service: files to gRPC credentials, a bad file to one sentence.

Owns what both sides check before a byte is sent: that the files are there, that a key belongs to
its certificate, that plain text stays on this machine. Whether a certificate is accepted is
decided in the handshake, by the other side.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc

from safeladder import addresses
from safeladder.config import TlsConfig
from safeladder.errors import ConfigError

Option = tuple[str, Any]
_SAN = "x509_subject_alternative_name"


def server_credentials(tls: TlsConfig, where: str) -> grpc.ServerCredentials:
    """What a service listens with; with ``ca_file`` only clients with a certificate get through.

    ``where`` is the dotted key of ``tls``. Raises ``ConfigError``, which names the key.
    """
    if tls.cert_file is None or tls.key_file is None:
        raise ConfigError(f"{where}.cert_file: a service needs a certificate and its `key_file`")
    if tls.ca_file is not None and not tls.allowed_names:
        raise ConfigError(
            f"{where}.allowed_names: list the names (SAN) of the client certificates to serve"
        )
    chain, key = _pair(tls.cert_file, tls.key_file, where)
    roots = None if tls.ca_file is None else _authorities(tls.ca_file, where)
    return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=bool(roots))


def open_channel(
    address: str, tls: TlsConfig | None, insecure: bool, where: str, options: Sequence[Option]
) -> grpc.aio.Channel:
    """The client's way to ``address``. The service's certificate must carry ``server_name``, or
    the host of the address. ``where`` is the dotted key of the service. Raises ``ConfigError``."""
    credentials, options = _client_side(address, tls, insecure, where, options)
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, credentials, options)


def open_blocking_channel(
    address: str, tls: TlsConfig | None, insecure: bool, where: str, options: Sequence[Option]
) -> grpc.Channel:
    """``open_channel`` for who has no event loop."""
    credentials, options = _client_side(address, tls, insecure, where, options)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def is_allowed(context: Any, allowed_names: Iterable[bytes]) -> bool:
    """Whether the certificate behind a call carries one of the names."""
    return not set(allowed_names).isdisjoint(context.auth_context().get(_SAN, ()))


def _client_side(
    address: str, tls: TlsConfig | None, insecure: bool, where: str, options: Sequence[Option]
) -> tuple[grpc.ChannelCredentials | None, Sequence[Option]]:
    """Credentials (None: plain text) and options of a channel."""
    if tls is None:
        if not (insecure or addresses.is_loopback(address.rpartition(":")[0])):
            raise ConfigError(
                f"{where}.tls: {address} is another machine and the traffic would be plain text; "
                f"name its `ca_file`, or write {where}.insecure: true for a network that you trust"
            )
        return None, options
    if tls.ca_file is None:
        raise ConfigError(f"{where}.tls.ca_file: name the authority of the service's certificate")
    roots = _authorities(tls.ca_file, f"{where}.tls")
    chain = key = None
    if tls.cert_file is not None and tls.key_file is not None:
        chain, key = _pair(tls.cert_file, tls.key_file, f"{where}.tls")
    if tls.server_name is not None:
        options = [*options, ("grpc.ssl_target_name_override", tls.server_name)]
    return grpc.ssl_channel_credentials(roots, key, chain), options


def _pair(cert_file: Path, key_file: Path, where: str) -> tuple[bytes, bytes]:
    chain = _read(cert_file, f"{where}.cert_file", b"CERTIFICATE")
    key = _read(key_file, f"{where}.key_file", b"PRIVATE KEY")
    try:
        # An empty password: OpenSSL must never ask for one on a terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"{key_file} is not the key of the certificate {cert_file}"
        else:
            problem = f"{key_file} and {cert_file} are not an unencrypted key and its certificate"
        raise ConfigError(f"{where}.key_file: {problem}") from error
    return chain, key


def _authorities(ca_file: Path, where: str) -> bytes:
    roots = _read(ca_file, f"{where}.ca_file", b"CERTIFICATE")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ConfigError(f"{where}.ca_file: {ca_file} holds a broken certificate") from error
    return roots


def _read(path: Path, key: str, kind: bytes) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read ({error.strerror})") from error
    if b"-----BEGIN " not in text or kind + b"-----" not in text:
        raise ConfigError(f"{key}: {path} holds no PEM {kind.decode().lower()}")
    return text
