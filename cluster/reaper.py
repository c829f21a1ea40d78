"""Ends what a killed driver leaves behind. A child process: ``python -m cluster.reaper MARK``.

Every process of a local run carries the run's mark in its environment. The driver holds the write
end of this process's standard input; when the driver is gone, however it ended, the pipe closes,
and all that still carry the mark are killed after a moment in which Ray may clean up by itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SAFELADDER_RUN_MARK"
GRACE_S = 3.0


@contextmanager
def reaper(mark: str, environment: dict[str, str]) -> Iterator[None]:
    """Watch over the processes with ``mark`` while the context is open, and clean up after it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.reaper", mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # what ends our process group must not end the reaper
        env={key: value for key, value in environment.items() if key != VARIABLE},
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def marked(mark: str) -> list[int]:
    """Ids of the living processes that carry the mark."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def main(mark: str) -> None:
    """Wait for the driver's end, then end the rest."""
    sys.stdin.read()
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and marked(mark):
        time.sleep(0.1)
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


if __name__ == "__main__":
    main(sys.argv[1])
