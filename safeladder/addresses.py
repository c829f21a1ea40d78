"""Addresses to listen on: what is none, what is in use, what others can reach."""

from __future__ import annotations

import errno
import ipaddress
import socket

from safeladder.errors import ConfigError, EnvironmentUnfitError


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by its name or number alone; no name is looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(bind: str, option: str = "--bind") -> None:
    """Refuse what is no ``host:port``. Raises ``ConfigError``."""
    host, separator, port = bind.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and int(port[:6]) < 65536
    if not (host and len(host) < 256 and separator and is_port):
        raise ConfigError(f"{option} wants host:port, such as 127.0.0.1:50051, got {bind!r}")


def check_loopback(bind: str, way_out: str) -> None:
    """Refuse plain text beyond this machine. Raises ``ConfigError``."""
    if not is_loopback(bind.rpartition(":")[0]):
        raise ConfigError(
            f"{bind} can be reached from outside and the traffic is plain text; bind to "
            f"127.0.0.1{way_out}"
        )


def check_free(bind: str, option: str = "--bind") -> None:
    """Refuse an address that cannot be listened on, before a library says so in its own words.

    Raises ``EnvironmentUnfitError``, naming port and way out.
    """
    host, _, port = bind.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server((str(address[0]), int(port)), family=family).close()
    except (OSError, UnicodeError) as error:
        if isinstance(error, UnicodeError):
            what = f"no such host; choose an address of this machine with {option}"
        elif error.errno == errno.EADDRINUSE:
            what = f"port {port} is in use; stop its owner or choose another with {option}"
        else:
            what = f"{error.strerror}; choose an address of this machine with {option}"
        raise EnvironmentUnfitError(
            f"cannot listen on {bind}: {what} (port 0: a free one)"
        ) from error
