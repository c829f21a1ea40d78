"""``safeladder why`` reads what a run wrote, and says when the run itself is silent."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cluster.live import read_live, write_live
from cluster.run_directory import RunDirectory, Status
from cluster.why_command import why_command
from safeladder.errors import ConfigError, NotResumableError
from tests.cluster.coordinator_play import Play, make_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.create(make_config(run={"name": "slow", "root": str(tmp_path), "steps": 9}))
    run.write_status(Status(state="running", pid=os.getpid()))
    return run


def write_steps(run: RunDirectory, number: int) -> None:
    values = {
        "time/step_s": 4.0, "time/train_s": 1.0, "learner/wait_s": 3.0, "learner/other_s": 0.0,
        "engines/busy": 1.0, "engines/idle": 0.0, "engines/loading": 0.0, "safety/full": 0.25,
    }  # fmt: skip
    rows = [{"kind": "train", "train/step": step, **values} for step in range(1, number + 1)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_live_run_says_what_it_waits_for_and_where_its_time_goes(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    write_live(run, Play(make_config()).coordinator.status())
    write_steps(run, 5)
    assert why_command(run.path, 20, as_json=False) == 0
    said = capsys.readouterr().out
    assert "learner waits for groups" in said
    assert "100 % of its speed of light" in said
    assert "generation itself is the limit" in said
    assert "calls wait for a slot 25 % of the time" in said


def test_a_driver_that_is_silent_is_said_to_be(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_live(run, Play(make_config()).coordinator.status())
    later = time.time() + 100
    monkeypatch.setattr(time, "time", lambda: later)
    why_command(run.path, 20, as_json=False)
    assert "the driver hangs or is gone" in capsys.readouterr().out


def test_a_run_that_has_ended_is_no_longer_said_to_wait(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    write_live(run, Play(make_config()).coordinator.status())
    write_steps(run, 3)
    run.write_status(Status(state="failed", pid=1, exit_code=5, reason="it diverged"))
    why_command(run.path, 20, as_json=False)
    said = capsys.readouterr().out
    assert "has failed: it diverged" in said
    assert "waits for groups:" not in said
    why_command(run.path, 20, as_json=True)
    assert json.loads(capsys.readouterr().out)["waits"] == []


def test_json_has_the_same(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    write_steps(run, 3)
    why_command(run.path, 20, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["waits"]) == ("running", [])
    assert found["gap"]["share_of_light"] == 1.0


def test_a_run_that_has_not_begun_and_a_folder_without_run_are_errors(
    run: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no step is trained yet"):
        why_command(run.path, 20, as_json=False)
    with pytest.raises(NotResumableError, match="holds no run"):
        why_command(tmp_path / "nowhere", 20, as_json=False)


LOOK = {
    "unix_s": 1.0, "version": 0, "published_version": 0, "running_step": None, "paused_by": None,
    "counts": {"leased": 1}, "waits": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"unix_s": 1}', "{", '{"waits": 3}', "[" * 100_000]
    + [
        json.dumps({**LOOK, **wrong})
        for wrong in ({"unix_s": None}, {"unix_s": 1e308}, {"unix_s": float("nan")},
                      {"counts": {"leased": "x"}}, {"counts": 3}, {"waits": [3]})
    ],
)  # fmt: skip
def test_a_damaged_look_is_none(run: RunDirectory, content: str) -> None:
    (run.path / "live.json").write_text(json.dumps(LOOK))
    assert read_live(run) is not None
    (run.path / "live.json").write_text(content)
    assert read_live(run) is None


def test_a_status_that_is_a_pipe_is_not_waited_for(run: RunDirectory) -> None:
    (run.path / "status.json").unlink()
    os.mkfifo(run.path / "status.json")
    assert run.status() is None
