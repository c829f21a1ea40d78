"""Why no channel comes up to an address at which something listens, found by a handshake.

gRPC says UNAVAILABLE for all of it: nobody there, another authority, another name, a certificate
that is refused, plain text against TLS. Python's own ``ssl`` can tell them apart. Decides nothing:
the words go into the error of the client that could not start.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from safeladder.config import TlsConfig
from safeladder.errors import ConfigError, VerifierUnavailableError

PATIENCE_S = 1.5
"""For each of: a connection, a handshake, the first bytes."""
_NAME_CODES = {62, 64}
"""OpenSSL's for a host name and for an address that the certificate does not carry."""
_DATE_CODES = {9, 10}
"""Not valid yet; not valid any more."""


@dataclass(frozen=True, slots=True)
class _Place:
    address: str
    tls: TlsConfig | None
    where: str

    @property
    def target(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def name(self) -> str:
        """What the service's certificate must carry."""
        return (self.tls and self.tls.server_name) or self.target[0]

    def config_error(self, key: str, what: str) -> ConfigError:
        return ConfigError(
            f"{self.where}.{key}: something listens at {self.address}, but the connection cannot "
            f"be secured: {what}"
        )


def diagnose(
    address: str, tls: TlsConfig | None, where: str, told: str
) -> ConfigError | VerifierUnavailableError | None:
    """The error that names the key at fault; None if nobody listens.

    ``where`` is the dotted key of the service, ``told`` what gRPC says. Blocks for a few seconds at
    most.
    """
    place = _Place(address, tls, where)
    try:
        connection = socket.create_connection(place.target, PATIENCE_S)
    except (OSError, UnicodeError):
        return None
    with connection:
        found = _plain(place, connection) if tls is None else _secured(place, tls, connection)
    return found or VerifierUnavailableError(
        f"{where}.address: something listens at {address}, but it does not answer as a verifier "
        f"service ({told}); correct the address, look at {where}.tls on both sides, or start the "
        "service again"
    )


def _plain(place: _Place, connection: socket.socket) -> ConfigError | None:
    """Whether a client without TLS has found a service with it."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        with anybody.wrap_socket(connection, server_hostname=place.name):
            is_tls = True
    except (OSError, ValueError) as error:
        is_tls = "ALERT" in str(getattr(error, "reason", ""))
    if not is_tls:
        return None
    return place.config_error(
        "tls", "it speaks TLS and this side plain text; name its authority as `tls.ca_file`"
    )


def _secured(
    place: _Place, tls: TlsConfig, connection: socket.socket
) -> ConfigError | VerifierUnavailableError | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(tls.ca_file)
    if tls.cert_file is not None and tls.key_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    try:
        with context.wrap_socket(connection, server_hostname=place.name) as secured:
            # Only after the client's handshake does a service say what it thinks of the client.
            is_admitted = bool(secured.recv(1))
    except ssl.SSLCertVerificationError as error:
        return _untrusted(place, tls, error)
    except TimeoutError:
        return None
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return place.config_error(
                "tls",
                "it does not speak TLS; give the service `tls.cert_file` and `tls.key_file`, or "
                "correct the address",
            )
        is_admitted = False
    except (OSError, ValueError):
        is_admitted = False
    return None if is_admitted else _refused(place, tls)


def _untrusted(
    place: _Place, tls: TlsConfig, error: ssl.SSLCertVerificationError
) -> ConfigError | VerifierUnavailableError:
    if error.verify_code in _NAME_CODES:
        return place.config_error(
            "tls.server_name",
            f"its certificate does not carry the name {place.name!r}; name one that it carries",
        )
    if error.verify_code in _DATE_CODES:
        return VerifierUnavailableError(
            f"{place.where}: something listens at {place.address}, but the connection cannot be "
            f"secured: {error.verify_message}; renew the service's `tls.cert_file`"
        )
    return place.config_error(
        "tls.ca_file",
        f"its certificate is not signed by an authority of {tls.ca_file} "
        f"({error.verify_message}); name the one that signed it",
    )


def _refused(place: _Place, tls: TlsConfig) -> ConfigError:
    if tls.cert_file is None:
        what = "it ends the connection of a client without a certificate; name one, and `key_file`"
    else:
        what = (
            f"it refuses the certificate {tls.cert_file}; show one that an authority of the "
            "service's `tls.ca_file` has signed and that has not expired"
        )
    return place.config_error("tls.cert_file", what)
