"""What ``make demo`` may delete, and when."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cluster import checks
from cluster.run_directory import RunDirectory, Status
from demo import __main__ as demo
from demo.convert_smollm2 import ConversionError
from safeladder.config import Config
from safeladder.config_loading import load_config
from safeladder.errors import ConfigError, DivergedError, RunExistsError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An override of the folder of runs; nothing is converted, prepared or checked."""
    monkeypatch.setattr(demo, "convert", lambda _: None)
    monkeypatch.setattr(demo, "prepare_ray", lambda _: None)
    monkeypatch.setattr(checks, "preflight", lambda _: None)
    driver = ModuleType("cluster.driver")
    monkeypatch.setitem(sys.modules, "cluster.driver", driver)
    driver.__dict__["train"] = train
    return f"run.root={tmp_path}"


def train(config: Config) -> int:
    RunDirectory.create(config)
    raise DivergedError("loss is not finite")


def earlier(*overrides: str) -> RunDirectory:
    run = RunDirectory.create(load_config([demo.CONFIG], overrides))
    (run.path / "mark").touch()
    return run


def test_the_last_demo_gives_way_and_a_failure_is_recorded(root: str) -> None:
    run = earlier(root)
    with pytest.raises(DivergedError):
        demo.main([root])
    assert not (run.path / "mark").exists()
    assert run.status() == Status(
        state="failed", pid=os.getpid(), exit_code=5, reason="DivergedError: loss is not finite"
    )


def test_a_run_of_another_name_is_never_removed(root: str) -> None:
    run = earlier(root, "run.name=mine")
    with pytest.raises(RunExistsError, match="mine already exists"):
        demo.main([root, "run.name=mine"])
    assert (run.path / "mark").exists()


def test_nothing_is_removed_before_the_checks_have_passed(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Config) -> None:
        raise ConfigError("no")

    monkeypatch.setattr(checks, "preflight", refuse)
    run = earlier(root)
    with pytest.raises(ConfigError):
        demo.main([root])
    assert (run.path / "mark").exists()


def test_a_conversion_that_fails_is_an_unfit_machine() -> None:
    assert ConversionError("no package").exit_code == 3
