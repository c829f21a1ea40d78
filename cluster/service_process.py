"""What a service process owes its surroundings: a word when it is ready, an end when it is told or
left alone. Knows nothing of what is served, nor of addresses."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import threading
from pathlib import Path

from safeladder.errors import ConfigError, EnvironmentUnfitError

MIN_OPEN_FILES = 256
_PR_SET_PDEATHSIG = 1


def allow_open_files(wanted: int) -> int:
    """Raise this process's limit of open files towards ``wanted``; returns what it may open.

    Raises ``EnvironmentUnfitError`` for a limit that leaves no room for connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, wanted)
    if soft != resource.RLIM_INFINITY and soft < min(wanted, hard):
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    if allowed < MIN_OPEN_FILES:
        raise EnvironmentUnfitError(
            f"this process may open {allowed} files, a service needs {MIN_OPEN_FILES}; "
            f"raise the limit with `ulimit -n {wanted}`"
        )
    return allowed


def check_ready_file(ready_file: Path, option: str = "--ready-file") -> None:
    """Refuse a place where no file can be written. Raises ``ConfigError``."""
    folder, is_usable = ready_file.parent, False
    try:
        is_usable = not ready_file.is_dir() and folder.is_dir() and os.access(folder, os.W_OK)
        ready_file.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        is_usable = False
    if not is_usable:
        raise ConfigError(f"{option}: {ready_file} cannot be written; name a file in a folder")


def announce(address: str, ready_file: Path) -> None:
    """Write ``host:port`` so that a reader sees all of it or no file. Raises ``ConfigError``."""
    unfinished = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
    try:
        unfinished.write_text(address)
        unfinished.replace(ready_file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(f"--ready-file: {ready_file}: {error.strerror}") from error


def withdraw(address: str, ready_file: Path) -> None:
    """Remove what ``announce`` wrote, unless another service has written its own."""
    with contextlib.suppress(OSError):
        if ready_file.read_text() == address:
            ready_file.unlink()


def stop_signal(insist_after_s: float) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on.

    A process that has not ended ``insist_after_s`` later, whatever its event loop is busy with, is
    ended with status 1. Call it on the main thread.
    """
    event = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: int, frame: object) -> None:
        del number, frame
        with contextlib.suppress(RuntimeError):  # the loop is closed: the end is near
            loop.call_soon_threadsafe(event.set)
        end = threading.Timer(insist_after_s, os._exit, (1,))
        end.daemon = True
        end.start()

    # Not the loop's own handlers: those wait for the loop, which other people's code may hold up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return event


def die_with_parent() -> None:
    """Linux: SIGKILL when the parent is gone, whatever this process is busy with."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died between the two lines
        os.kill(os.getpid(), signal.SIGKILL)
