"""What a service process owes its surroundings: a safe address, a word when it is ready, an end
when it is told or left alone. Knows nothing of what is served."""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import os
import signal
from pathlib import Path

from safeladder.errors import ConfigError

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
