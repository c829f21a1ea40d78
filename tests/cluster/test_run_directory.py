import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import run_directory
from cluster.run_directory import RunDirectory, Status, require_free_disk, write_json
from safeladder.config import Config
from safeladder.config_loading import config_hash
from safeladder.errors import (
    DivergedError,
    EnvironmentUnfitError,
    FencedError,
    NotResumableError,
    RunExistsError,
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "demo", "steps": 3, "root": str(tmp_path / "runs")},
            "model": {"path": "models/tiny"},
            "data": {"train": ["train.jsonl"]},
            "principles": {"safety": {"verifier": "rewards.safety:SafetyRules"}},
            "routes": {"safety": {"safety": 1.0}},
        }
    )


def test_a_new_run_holds_its_config_its_hash_the_host_and_a_status(config: Config) -> None:
    run = RunDirectory.create(config)
    assert run.path == config.run.directory
    assert run.config() == config
    assert (run.path / "config.sha256").read_text().strip() == config_hash(config)
    host = json.loads((run.path / "host.json").read_text())
    assert host["packages"]["numpy"]
    assert host["memory_bytes"] > 2**30
    assert run.status() == Status(state="starting", pid=os.getpid())
    assert run.batches.is_dir()
    assert run.checkpoints.is_dir()


def test_an_existing_run_is_never_touched_and_both_ways_out_are_named(config: Config) -> None:
    run = RunDirectory.create(config)
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(
        RunExistsError, match=r"runs/demo already exists.*run\.name.*resume"
    ) as caught:
        RunDirectory.create(config)
    assert caught.value.exit_code == 2
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


def test_of_two_drivers_that_start_at_once_the_second_leaves_the_first_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunDirectory.create(config)
    before = {p.name: p.read_bytes() for p in first.path.iterdir() if p.is_file()}
    monkeypatch.setattr(RunDirectory, "require_absent", lambda _: None)  # looked before the first
    with pytest.raises(RunExistsError, match=r"runs/demo already exists"):
        RunDirectory.create(config)
    assert {p.name: p.read_bytes() for p in first.path.iterdir() if p.is_file()} == before
    assert first.checkpoints.is_dir()


def test_a_root_that_is_no_folder_is_an_unfit_environment(config: Config) -> None:
    config.run.root.write_text("a file")
    with pytest.raises(EnvironmentUnfitError, match="run directory cannot be written") as caught:
        RunDirectory.create(config)
    assert caught.value.exit_code == 3


def test_whether_a_run_can_be_made_is_known_beforehand(config: Config, tmp_path: Path) -> None:
    config.run.root.write_text("a file")
    with pytest.raises(EnvironmentUnfitError, match=r"runs is no folder; set run\.root"):
        require_free_disk(config.run.directory, 1)
    with pytest.raises(EnvironmentUnfitError, match=r"null byte; set run\.root"):
        require_free_disk(tmp_path / "a\0b" / "demo", 1)


def test_a_full_disk_is_named_and_leaves_no_half_made_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_directory, "write_json", full)
    with pytest.raises(EnvironmentUnfitError, match=r"the disk is full; free some space"):
        RunDirectory.create(config)
    assert not config.run.directory.exists()


def test_too_little_free_disk_is_refused_with_both_amounts(tmp_path: Path) -> None:
    require_free_disk(tmp_path / "not" / "yet", 1)
    with pytest.raises(EnvironmentUnfitError, match=r"GiB are free.*needs about 1073741824\.0 GiB"):
        require_free_disk(tmp_path / "not" / "yet", 2**60)


def test_a_folder_without_a_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        NotResumableError, match=r"holds no run: there is no config\.yaml"
    ) as caught:
        RunDirectory.open(tmp_path)
    assert caught.value.exit_code == 6


def test_a_failure_keeps_step_and_version_and_adds_code_and_reason(config: Config) -> None:
    run = RunDirectory.create(config)
    run.write_status(Status(state="running", pid=os.getpid(), step=7, version=7))
    run.record_failure(DivergedError("loss is not finite"))
    status = run.status()
    assert status == Status(
        state="failed", pid=os.getpid(), step=7, version=7, exit_code=5,
        reason="DivergedError: loss is not finite",
    )  # fmt: skip


def test_a_failure_is_not_written_over_the_status_of_another_driver(config: Config) -> None:
    run = RunDirectory.create(config)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as other:
        theirs = Status(state="running", pid=other.pid)
        run.write_status(theirs)
        run.record_failure(DivergedError("x"), take_over=True)
        assert run.status() == theirs
        other.communicate(b"\n")
    run.record_failure(DivergedError("x"))
    assert run.status() == theirs
    run.record_failure(DivergedError("x"), take_over=True)
    taken = run.status()
    assert taken is not None
    assert (taken.state, taken.pid, taken.exit_code) == ("failed", os.getpid(), 5)


def test_a_driver_that_was_replaced_does_not_say_how_the_run_stands(config: Config) -> None:
    run = RunDirectory.create(config)
    run.write_status(Status(state="starting", pid=2))
    run.write_own_status(Status(state="running", pid=2, step=3))
    with pytest.raises(FencedError, match="the run of the driver with process 2"):
        run.write_own_status(Status(state="finished", pid=1, step=9))
    assert run.status() == Status(state="running", pid=2, step=3)


def test_a_status_that_cannot_be_read_counts_as_none(config: Config) -> None:
    run = RunDirectory.create(config)
    for text in ("", "{", '{"unknown": 1}', "[]"):
        (run.path / "status.json").write_text(text)
        assert run.status() is None


def test_json_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"k": "old"})
    write_json(tmp_path / "a.json", {"k": "é"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"k": "é"}
