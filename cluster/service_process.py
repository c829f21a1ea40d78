"""What a service process owes its surroundings: a safe address, a word when it is ready, an end
when it is told or left alone. Knows nothing of what is served."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import ipaddress
import os
import signal
import socket
from pathlib import Path

from safeladder.errors import ConfigError, EnvironmentUnfitError

_PR_SET_PDEATHSIG = 1


def check_bind(bind: str, insecure: bool) -> None:
    """Refuse what is no ``host:port``, and plain text off loopback without ``insecure``.

    Raises ``ConfigError``.
    """
    host, separator, port = bind.rpartition(":")
    if not (host and separator and port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"--bind wants host:port, such as 127.0.0.1:50051, got {bind!r}")
    if insecure or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(
            f"{bind} can be reached from outside and the traffic is plain text; bind to "
            "127.0.0.1, or say --insecure on a network that you trust"
        )


def check_free(bind: str) -> None:
    """Refuse an address that cannot be listened on, before a library says so in its own words.

    Raises ``EnvironmentUnfitError``, naming port and way out.
    """
    host, _, port = bind.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server((str(address[0]), int(port)), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} is in use; stop its owner or choose another with --bind"
        else:
            what = f"{error.strerror}; choose an address of this machine with --bind"
        raise EnvironmentUnfitError(
            f"cannot listen on {bind}: {what} (port 0: a free one)"
        ) from error


def announce(address: str, ready_file: Path) -> None:
    """Write ``host:port`` so that a reader sees all of it or no file."""
    unfinished = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
    unfinished.write_text(address)
    unfinished.replace(ready_file)


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    event = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def die_with_parent() -> None:
    """Linux: SIGKILL when the parent is gone, whatever this process is busy with."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died between the two lines
        os.kill(os.getpid(), signal.SIGKILL)
