"""Which processes a command left behind: all that carry its mark in their environment, whoever
their parent is by now."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from .conftest import REPOSITORY, run_environment

MARK = "SAFELADDER_TEST_MARK"
GONE_WITHIN_S = 10.0


@dataclass
class Command:
    """``python -m cluster`` with these words, started in a process of its own."""

    words: tuple[str, ...]
    within: tuple[str, ...] = ()
    """A program, with its arguments, that starts it."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [*self.within, sys.executable, "-m", "cluster", *self.words],
            cwd=REPOSITORY, env=run_environment() | {MARK: self.mark}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, timeout: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def left(self) -> list[psutil.Process]:
        """Living processes with our mark, once they have had time to end."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while (alive := marked(self.mark)) and time.monotonic() < deadline:
            psutil.wait_procs(alive, timeout=0.5)
        return alive


@contextmanager
def command(*words: str, within: tuple[str, ...] = ()) -> Iterator[Command]:
    """A command that is ended, with all it started, when the test is over."""
    started = Command(words, within)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait(timeout=30)
        for stream in (started.process.stdout, started.process.stderr):
            assert stream is not None
            stream.close()
        end(started.mark)


def end(mark: str) -> None:
    """End all processes with this mark: politely, then at once."""
    for process in marked(mark):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(marked(mark), timeout=5)
    for process in [*alive, *marked(mark)]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            is_ours = process.pid != os.getpid() and process.environ().get(MARK) == mark
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
