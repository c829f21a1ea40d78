"""The reaper ends all of a run, also what has lost the mark, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.reaper import VARIABLE, look, reaper

pytestmark = pytest.mark.process

MARK = "mark-of-this-test"


@contextmanager
def parent_of_unmarked() -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A marked process with a child whose environment is empty, as Ray's agents' is."""
    parent = subprocess.Popen(
        ["sh", "-c", "env -i sleep 300 & wait; sleep 300"], env={**os.environ, VARIABLE: MARK}
    )
    watched = psutil.Process(parent.pid)
    try:
        while not (children := watched.children()) or children[0].name() != "sleep":
            time.sleep(0.01)
        yield parent, children[0]
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended by the test itself
            for process in [*watched.children(), watched]:
                process.kill()
        parent.wait(timeout=10)


def test_a_child_without_the_mark_is_found_and_stays_found_as_an_orphan() -> None:
    with parent_of_unmarked() as (parent, child):
        members = look(MARK, set())
        assert {parent.pid, child.pid} == {process.pid for process in members}
        parent.kill()
        assert look(MARK, members) == {child}
        child.kill()


def test_closing_ends_the_run_and_its_folder_and_spares_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    other = subprocess.Popen(["sleep", "300"])
    try:
        with parent_of_unmarked() as (parent, child):
            with reaper(MARK, str(folder), dict(os.environ)):
                pass
            assert parent.wait(timeout=10) == -signal.SIGKILL
            assert not folder.exists()
            assert psutil.wait_procs([child], timeout=10)[1] == []
            assert look(MARK, set()) == set()  # nor what the parent began as its child died
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(timeout=10)
