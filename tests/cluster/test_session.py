"""A local Ray that comes up late is started again; every other failure is told at once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import remote
from cluster.reaper import VARIABLE
from safeladder.errors import EnvironmentUnfitError
from tests.cluster.coordinator_play import make_config

pytestmark = pytest.mark.process

TOO_SLOW = "The current node timed out during startup. This could happen because …"
NO_PORT = "Timed out waiting for file /tmp/…/gcs_server_port_9fd1"


class SlowRay:
    """Stands for ``ray.init``: starts a process, then fails in ``failures`` of its first calls."""

    def __init__(self, failures: list[str]) -> None:
        self._failures = failures
        self.started: list[subprocess.Popen[bytes]] = []
        self.folders: list[Path] = []

    def init(self, **options: Any) -> None:
        self.folders.append(Path(options["_temp_dir"]))
        self.started.append(subprocess.Popen(["sleep", "300"]))
        if self._failures:
            raise RuntimeError(self._failures.pop(0))


@pytest.fixture
def slow_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowRay]:
    ray = SlowRay([])
    monkeypatch.setenv(VARIABLE, "")  # what the session sets is taken away again
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(remote.ray, "init", ray.init)
    monkeypatch.setattr(remote.ray, "shutdown", lambda: None)
    yield ray
    for process in ray.started:
        process.kill()
        process.wait(timeout=10)


def test_a_slow_start_is_tried_again_after_what_it_left_is_ended(slow_ray: SlowRay) -> None:
    slow_ray._failures += [TOO_SLOW, NO_PORT]
    with remote.session(make_config()):
        first, second, third = slow_ray.started
        assert first.wait(timeout=10) < 0
        assert second.wait(timeout=10) < 0
        assert third.poll() is None
        assert [folder.exists() for folder in slow_ray.folders] == [False, False, True]
    assert third.wait(timeout=10) < 0
    assert not slow_ray.folders[-1].exists()


def test_a_machine_that_is_always_too_slow_is_an_error_after_three_tries(slow_ray: SlowRay) -> None:
    slow_ray._failures += [TOO_SLOW] * 9
    with pytest.raises(EnvironmentUnfitError, match="timed out during startup"):
        remote.session(make_config()).__enter__()
    assert len(slow_ray.started) == remote.LOCAL_TRIES


def test_another_failure_is_told_at_once(slow_ray: SlowRay) -> None:
    slow_ray._failures += ["Failed to register worker"]
    with pytest.raises(EnvironmentUnfitError, match="Failed to register worker"):
        remote.session(make_config()).__enter__()
    assert len(slow_ray.started) == 1
