"""``ray job submit --working-dir . -- python -m cluster train CONFIG`` into an environment that has
all our dependencies but not our package: the job trains, and publishes weights to vLLM."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import REPOSITORY, run_environment
from .leftovers import MARK, end
from .readings import metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(500)]

START_DEADLINE_S = 120.0
JOB_DEADLINE_S = 300.0
RAY = "from ray.scripts.scripts import main; main()"
"""The command ``ray`` of whichever interpreter runs it."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with everything installed that ours has, safeladder left
    out: a new virtual environment whose packages are links."""
    folder = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(folder, symlinks=True)
    there = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "safeladder" not in package.name and package.name != "__pycache__":
            (there / package.name).symlink_to(package)
    return folder / "bin" / "python"


@dataclass(frozen=True)
class Cluster:
    python: Path
    environment: dict[str, str]

    def ray(self, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-c", RAY, *words], cwd=REPOSITORY, env=self.environment,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(python: Path) -> Iterator[Cluster]:
    """A head of its own: ports and folder that nobody else has, answering to its token alone, and
    ended by the mark on its processes, never by ``ray stop``, which ends every cluster there is."""
    mark, dashboard = secrets.token_hex(8), free_port()
    environment = run_environment() | {
        MARK: mark,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_process_group_cleanup_enabled": "true",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    environment.pop("PYTHONPATH", None)
    with ExitStack() as stack:
        # Short: the sockets below it must fit into 107 bytes.
        temp = stack.enter_context(tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp"))
        log = stack.enter_context((Path(temp) / "head.log").open("w+"))
        stack.callback(end, mark)
        head = subprocess.Popen(
            [
                python, "-c", RAY, "start", "--head", "--block", f"--temp-dir={temp}/ray",
                "--node-ip-address=127.0.0.1", f"--port={free_port()}", "--num-cpus=4",
                "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--ray-client-server-port={free_port()}", "--min-worker-port=0",
                "--max-worker-port=0", "--object-store-memory=200000000",
            ],
            cwd=temp, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        made = Cluster(python, environment)
        deadline = time.monotonic() + START_DEADLINE_S
        while made.ray("job", "list", timeout=60).returncode != 0:
            assert head.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
        yield made


def free_port() -> int:
    """A free port below those that the system itself gives out: Ray's own processes take many of
    these before the one that we name binds it."""
    while True:
        number = 20_000 + secrets.randbelow(10_000)
        try:
            socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        return number


def test_a_job_in_an_environment_without_our_package_trains_and_publishes_to_vllm(
    cluster: Cluster, tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = tiny_config(name="job", steps=2, overrides={"rollout": {"engine": "vllm"}})
    found = "import importlib.metadata as m; print(*[d.name for d in m.distributions()])"
    names = subprocess.run(
        [cluster.python, "-c", found], cwd=tmp_path, env=cluster.environment,
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "ray" in names
    assert "safeladder" not in names

    job = cluster.ray(
        "job", "submit", "--working-dir", ".", "--",
        "python", "-m", "cluster", "train", str(config), timeout=JOB_DEADLINE_S,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]

    run = tmp_path / "runs" / "job"
    assert json.loads((run / "status.json").read_text())["exit_code"] == 0
    rows = metrics(run)
    assert sorted(rows) == [1, 2]
    assert rows[2]["rollout/version"] >= 1, "the engine never loaded what was published"
    host = json.loads((run / "host.json").read_text())
    assert "safeladder" not in host["packages"]
    assert host["packages"]["ray"]
