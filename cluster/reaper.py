"""Ends what a killed driver leaves behind: a child process, ``cluster.reaper MARK FOLDER``.

Every process of a local run starts with the run's mark in its environment. The driver holds the
write end of this process's standard input; when the driver is gone, however it ended, the pipe
closes, and all that belong to the run are killed after a moment in which Ray may clean up by
itself. A process that renames itself overwrites its environment (Ray's agents do), so the reaper
looks while the driver lives, and counts the children of what it has seen. The run's temp folder
goes last.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

VARIABLE = "SAFELADDER_RUN_MARK"
GRACE_S = 3.0
LOOK_EVERY_S = 1.0


@contextmanager
def reaper(mark: str, folder: str, environment: dict[str, str]) -> Iterator[None]:
    """Watch the processes with ``mark`` in the context; at its end, end them and ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.reaper", mark, folder],
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


def look(mark: str, known: set[psutil.Process]) -> set[psutil.Process]:
    """Those of the run that live now: with the mark, seen before, or a child of either."""
    processes = {process.pid: process for process in psutil.process_iter(["ppid", "status"])}
    members = {process.pid for process in known if processes.get(process.pid) == process}
    members |= {pid for pid in processes if carries(pid, mark)}
    found = 0
    while found < len(members):  # until a pass adds no child
        found = len(members)
        members |= {p.pid for p in processes.values() if p.info["ppid"] in members}
    living = {pid for pid in members if processes[pid].info["status"] != psutil.STATUS_ZOMBIE}
    return {processes[pid] for pid in living}


def carries(pid: int, mark: str) -> bool:
    """Whether the process was started with the mark and has kept its environment."""
    with contextlib.suppress(OSError):
        return f"{VARIABLE}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def main(mark: str, folder: str) -> None:
    """Wait for the driver's end, then end the rest."""
    members: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        members = look(mark, members)
    deadline = time.monotonic() + GRACE_S
    while (members := look(mark, members)) and time.monotonic() < deadline:
        time.sleep(0.1)
    deadline = time.monotonic() + GRACE_S
    while members and time.monotonic() < deadline:  # a parent may start another while it dies
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        members = look(mark, members)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    main(sys.argv[1], sys.argv[2])
