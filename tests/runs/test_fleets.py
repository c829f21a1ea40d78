"""Two fleets of CPU engines on a Ray cluster of two nodes: engines join when a node does, leave
when they are asked to, and vanish with their node, while a run trains."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from safeladder.errors import PreemptedError

from .conftest import REPOSITORY, run_environment
from .leftovers import MARK, end
from .readings import metrics, trained_groups
from .test_job import RAY, free_port

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 240.0
STEPS = 100_000
"""More than there is time for: the run is told to stop."""


@dataclass
class Command:
    """One that runs, or has run."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        return self.output.read_text()

    def end(self, code: int = 0) -> str:
        """Wait for its end with this exit code; returns what it said."""
        assert self.process.wait(120) == code, self.said[-4000:]
        return self.said


@dataclass
class Nodes:
    """A Ray cluster on this machine: a head with the resource ``fast``, and nodes that come and go
    with ``slow``. Ended by the marks on its processes, never by ``ray stop``."""

    address: str
    environment: dict[str, str]
    logs: Path

    def start(self, *words: str) -> str:
        """A node; returns its mark."""
        mark = secrets.token_hex(8)
        log = (self.logs / f"{mark}.log").open("w")
        subprocess.Popen(
            [sys.executable, "-c", RAY, "start", "--block", "--min-worker-port=0",
             "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}",
             "--node-ip-address=127.0.0.1", *words],
            cwd=self.logs, env=self.environment | {MARK: mark}, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        return mark

    def add(self) -> str:
        """A node for engines of the fleet ``slow``."""
        return self.start(
            f"--address={self.address}", "--num-cpus=2", "--resources={\"slow\": 1}",
            "--labels=speed=slow", "--object-store-memory=100000000",
        )  # fmt: skip

    def safeladder(self, *words: str) -> Command:
        """Start a command."""
        output = self.logs / f"{secrets.token_hex(8)}.out"
        with output.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cluster", *words], cwd=REPOSITORY,
                env=self.environment | {MARK: self.environment["DRIVER"]}, stdout=log, stderr=log,
            )  # fmt: skip
        return Command(process, output)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    driver = secrets.token_hex(8)
    environment = run_environment() | {
        "DRIVER": driver,
        "COLUMNS": "200",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with ExitStack() as stack:
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp")))
        port = free_port()
        made = Nodes(f"127.0.0.1:{port}", environment, temp)
        head = made.start(
            "--head", f"--temp-dir={temp}/ray", f"--port={port}", "--num-cpus=8",
            "--resources={\"fast\": 1}", f"--ray-client-server-port={free_port()}",
            "--include-dashboard=false", "--object-store-memory=200000000",
        )  # fmt: skip
        stack.callback(end, head)
        stack.callback(end, driver)
        yield made


def wait_for(condition: Callable[[], Any], what: str, driver: Command) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert driver.process.poll() is None, driver.said[-4000:]
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.2)


def test_engines_join_leave_and_vanish_and_no_group_is_lost(
    nodes: Nodes, tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = tiny_config(
        name="fleets",
        steps=STEPS,
        overrides={
            "fleets": {
                "fast": {"resources": {"fast": 0.5}, "cores": [0]},
                "slow": {
                    "actors": 0, "max_actors": 1, "resources": {"slow": 1.0},
                    "labels": {"speed": "slow"}, "cores": [1], "vllm": {"max_num_seqs": 8},
                },
            },
            "placement": {"address": nodes.address},
            "checkpoint": {"every_steps": 20},
        },
    )  # fmt: skip
    run = tmp_path / "runs" / "fleets"

    def steps() -> int:
        return len(metrics(run)) if (run / "metrics.jsonl").exists() else 0

    def slow_groups(after: int = 0) -> float:
        name = "fleet/rollout-slow/groups"
        return sum(row.get(name, 0.0) for step, row in metrics(run).items() if step > after)

    def profiles() -> dict[str, Any]:
        path = run / "profiles.json"
        return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]

    def alerts() -> str:
        return (run / "metrics.jsonl").read_text()

    deadline = time.monotonic() + DEADLINE_S
    while (check := nodes.safeladder("check", str(config))).process.wait(120) != 0:
        assert time.monotonic() < deadline, check.said[-3000:]  # the head comes up
    assert "speed=slow, 1 slow" in check.said

    driver = nodes.safeladder("train", str(config))
    wait_for(lambda: steps() >= 2, "the first steps", driver)
    assert slow_groups() == 0

    node = nodes.add()
    wait_for(lambda: slow_groups() > 0, "an engine on the new node", driver)
    wait_for(lambda: len(profiles()) == 2, "both profiles", driver)
    assert profiles()["rollout-slow"]["rollout-slow-0"]["max_sequences"] == 8
    assert profiles()["rollout-fast"]["rollout-fast-0"]["max_sequences"] == 64

    nodes.safeladder("fleets", str(run), "--set", "slow=0").end()
    wait_for(lambda: "rollout-slow-0 has left" in alerts(), "its leave", driver)
    assert "is lost" not in alerts()

    nodes.safeladder("fleets", str(run), "--set", "slow=1").end()
    left_at = steps()
    wait_for(lambda: slow_groups(left_at + 1) > 0, "its successor", driver)
    end(node)
    wait_for(lambda: "rollout-slow-1 is lost" in alerts(), "the loss of the node", driver)
    lost_at = steps()
    wait_for(lambda: steps() > lost_at + 3, "steps after the loss", driver)

    driver.process.terminate()
    driver.end(PreemptedError.exit_code)
    assert alerts().count("is lost") == 1
    assert not [row for row in metrics(run).values() if "dropped/failed" in row]
    assert set(trained_groups(run).values()) == {1}, "no group is trained twice"
    nodes.safeladder("ledger", str(run)).end()
