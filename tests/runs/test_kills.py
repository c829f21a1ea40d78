"""SIGKILL of every role in the middle of a real run, and of the driver itself.

The witness is not the ledger's own code: the batches on disk say which groups were trained in which
step, and the process table says who is still alive.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from tests.runs.conftest import REPOSITORY, run_environment

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(400)]

DEADLINE_S = 240.0
GONE_WITHIN_S = 10.0


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver in its own process; ended with everything it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "train", str(config)],
        cwd=REPOSITORY,
        env=run_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in children:
                if child.is_running():
                    child.kill()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.1)


def steps(run: Path) -> int:
    """Steps that the metrics know of."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return sum('"kind": "train"' in line or '"kind":"train"' in line for line in lines)


def find(driver: psutil.Process, title: str) -> psutil.Process | None:
    """The descendant whose command line starts with ``title``."""
    for process in driver.children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line.startswith(title):
            return process
    return None


def kill_with_its_descendants_gone(driver: psutil.Process, title: str) -> None:
    """SIGKILL one process; within 10 s nothing that hung below it may be alive."""
    wait_for(lambda: find(driver, title) is not None, title)
    victim = find(driver, title)
    assert victim is not None
    below = victim.children(recursive=True)
    victim.kill()
    _, alive = psutil.wait_procs([victim, *below], timeout=GONE_WITHIN_S)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], f"{title} left {alive}"


def trained_groups(run: Path) -> Counter[str]:
    """Group → number of batches that hold it, from the stored batches alone."""
    found: Counter[str] = Counter()
    for file in (run / "batches").glob("step-*.safetensors"):
        with safe_open(file, framework="np") as batch:
            metadata = batch.metadata()
        sample_ids = json.loads(metadata["sample_ids"])
        found.update({sample.rpartition("/")[0] for sample in sample_ids})
    return found


def test_killed_roles_are_replaced_and_no_group_is_lost_or_trained_twice(
    tiny_config: Callable[..., Path],
) -> None:
    config = tiny_config(
        name="kills",
        steps=40,
        overrides={
            "rollout": {"engine": "vllm"},
            "reference": {"kl_coefficient": 0.001},
            "checkpoint": {"every_steps": 20},
        },
    )
    run = config.parent / "runs" / "kills"
    with running(config) as process:
        driver = psutil.Process(process.pid)
        wait_for(lambda: steps(run) >= 1 or process.poll() is not None, "the first step")
        for title in (
            "ray::verifier",
            "ray::reference",
            "VLLM::EngineCore",
            "ray::rollout",
        ):
            before = steps(run)
            kill_with_its_descendants_gone(driver, title)
            wait_for(
                lambda before=before: steps(run) > before + 1 or process.poll() is not None,
                f"two steps after the kill of {title}",
            )
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output.decode()[-3000:]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["actors_lost"] >= 4
    trained = trained_groups(run)
    assert set(trained.values()) == {1}, "a group was trained twice"
    assert len(trained) == 40 * 4
    rows = sqlite3.connect(run / "ledger.sqlite").execute(
        "SELECT epoch, ordinal, state FROM groups ORDER BY epoch, ordinal"
    )
    states = {f"{epoch}/{ordinal}": state for epoch, ordinal, state in rows}
    assert {key for key, state in states.items() if state == "trained"} == set(trained)
    ordinals = sorted(int(key.partition("/")[2]) for key in states if key.startswith("0/"))
    assert ordinals == list(range(len(ordinals))), "an ordinal was never issued"


def test_a_killed_driver_leaves_no_process_behind(tiny_config: Callable[..., Path]) -> None:
    config = tiny_config(name="orphans", steps=1000, overrides={"rollout": {"engine": "vllm"}})
    run = config.parent / "runs" / "orphans"
    with running(config) as process:
        wait_for(lambda: steps(run) >= 1 or process.poll() is not None, "the first step")
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) > 5
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        _, alive = psutil.wait_procs(below, timeout=GONE_WITHIN_S)
        left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        names = [" ".join(p.cmdline())[:80] for p in left]
        for p in left:
            p.kill()
        assert not names
