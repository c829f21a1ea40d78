"""Resume: a driver that was killed, a checkpoint that was damaged, a folder that is taken."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.ledger import Ledger

from .conftest import (
    DETERMINISTIC,
    REPOSITORY,
    WHOLE_STEPS,
    cluster,
    run_environment,
    train,
    write_config,
)
from .readings import assert_same_batch, batch, metrics, trained_groups

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

DEADLINE_S = 240.0


def kill_after_checkpoint(config: Path, step: int) -> Path:
    """Start a run, SIGKILL its driver once it has a checkpoint of ``step`` or later; its folder."""
    return kill_when(config, lambda run: newest_checkpoint(run) >= step)


def kill_when(config: Path, is_time: Callable[[Path], bool]) -> Path:
    """Start a run, SIGKILL its driver as soon as ``is_time`` says so of its folder; the folder."""
    run = config.parent / "runs" / config.stem
    with (config.parent / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "cluster", "train", str(config)],
            cwd=REPOSITORY, env=run_environment(), stdout=log, stderr=log,
        )  # fmt: skip
        deadline = time.monotonic() + DEADLINE_S
        try:
            while not is_time(run) and driver.poll() is None:
                assert time.monotonic() < deadline, f"not there within {DEADLINE_S} s"
                time.sleep(0.01)
        finally:
            driver.send_signal(signal.SIGKILL)
            code = driver.wait(timeout=30)
    assert code == -signal.SIGKILL, Path(log.name).read_text()
    return run


def newest_checkpoint(run: Path) -> int:
    """Step that ``LATEST`` names; -1 without one."""
    latest = run / "checkpoints" / "LATEST"
    if not latest.exists():
        return -1
    return int(json.loads(latest.read_text())["checkpoint"].removeprefix("step-"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resume(run: Path) -> subprocess.CompletedProcess[str]:
    return cluster("resume", str(run))


def assert_every_group_has_one_end(run: Path, steps: int, groups_per_step: int) -> None:
    """By the ledger's own audit, and by the batches on disk, which the ledger never sees."""
    with Ledger.open(run / "ledger.sqlite", run.name) as ledger:
        assert ledger.audit(groups_per_step=groups_per_step, max_staleness=1) == []
    trained = trained_groups(run)
    assert set(trained.values()) == {1}, "a group is in two batches"
    assert len(trained) == steps * groups_per_step
    ends = ledger_states(run)
    assert set(ends.values()) <= {"trained", "dropped"}
    assert {group for group, state in ends.items() if state == "trained"} == set(trained)
    assert ends.keys() == {f"0/{ordinal}" for ordinal in range(len(ends))}, "one was never issued"


def ledger_states(run: Path) -> dict[str, str]:
    """Group → present state."""
    connection = sqlite3.connect(run / "ledger.sqlite")
    rows = connection.execute("SELECT epoch || '/' || ordinal, state FROM groups").fetchall()
    connection.close()
    return dict(rows)


def restarts(run: Path) -> int:
    """Groups that a later driver took back from one that died."""
    connection = sqlite3.connect(run / "ledger.sqlite")
    query = "SELECT count(*) FROM history WHERE target = 'pending' AND detail = 'restart'"
    (count,) = connection.execute(query).fetchone()
    connection.close()
    return int(count)


def test_a_killed_run_goes_on_from_an_older_checkpoint_as_if_nothing_had_happened(
    tiny_model: Path, tmp_path: Path, whole_run: Path
) -> None:
    run = kill_after_checkpoint(
        write_config(tmp_path, tiny_model, "cut", WHOLE_STEPS, DETERMINISTIC), 3
    )
    newest = newest_checkpoint(run)
    damaged = run / "checkpoints" / f"step-{newest}" / "model.safetensors"
    flip_a_byte(damaged)

    done = resume(run)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{damaged} differs from its SHA-256" in done.stderr
    (alert,) = alerts(run, "checkpoint")
    assert alert.startswith(f"checkpoint step-{newest} is skipped: {damaged} differs from its")
    assert f"! {alert}" in done.stdout
    assert f"training: {WHOLE_STEPS - (newest - 1)} steps" in done.stdout
    rows, expected = metrics(run), metrics(whole_run)
    assert sorted(rows) == list(range(1, WHOLE_STEPS + 1))
    for step in rows:
        assert losses(rows[step]) == losses(expected[step])
        assert_same_batch(run, whole_run, step)
    assert_every_group_has_one_end(run, steps=WHOLE_STEPS, groups_per_step=3)
    assert restarts(run) > 0, "nothing was on its way when the driver died"
    name = Path("checkpoints") / f"step-{WHOLE_STEPS}"
    same = [
        AutoModelForCausalLM.from_pretrained(one / name).state_dict() for one in (run, whole_run)
    ]
    for tensor, value in same[0].items():
        assert torch.equal(value, same[1][tensor]), tensor


def alerts(run: Path, kind: str) -> list[str]:
    """The texts that ``metrics.jsonl`` has under a kind of alert."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["text"] for row in rows if row.get("alert") == kind]


def losses(row: dict[str, Any]) -> dict[str, Any]:
    """What the learner measured and was given; counts of dropped or repeated groups run ahead of a
    step that is repeated."""
    return {name: value for name, value in row.items() if name.startswith(("train/", "reward/"))}


def test_an_asynchronous_run_is_resumed_without_a_group_lost_or_trained_twice(
    tiny_config: Callable[..., Path],
) -> None:
    overrides = {"reward": {"filter_zero_variance": True}, "rollout": {"max_new_tokens": 32}}
    run = kill_after_checkpoint(tiny_config(name="async", steps=8, overrides=overrides), 2)
    checkpoint = newest_checkpoint(run)

    done = resume(run)

    assert done.returncode == 0, done.stdout + done.stderr
    assert_every_group_has_one_end(run, steps=8, groups_per_step=4)
    assert restarts(run) > 0, "nothing was on its way when the driver died"
    versions = [int(batch(run, step)[0]["token_versions"].max()) for step in range(1, 9)]
    staleness = [step - 1 - version for step, version in enumerate(versions, start=1)]
    assert set(staleness) <= {0, 1}
    assert versions[checkpoint] == checkpoint, "the first step after the resume has its weights"
    assert metrics(run)[8]["rollout/version"] == 8


def test_a_run_without_a_sound_checkpoint_is_not_resumed(whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "spoiled"
    shutil.copytree(whole_run, run)
    (run / "status.json").unlink()  # a finished run would be refused for another reason
    for checkpoint in (run / "checkpoints").glob("step-*"):
        flip_a_byte(checkpoint / "optimizer.safetensors")

    done = resume(run)

    assert done.returncode == 6
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("safeladder: ")]
    for step in (WHOLE_STEPS - 2, WHOLE_STEPS - 1, WHOLE_STEPS):
        assert f"{run}/checkpoints/step-{step}/optimizer.safetensors differs" in sentence


def test_a_run_folder_that_is_taken_is_not_touched(whole_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}

    done = train(whole_run / "config.yaml")

    assert done.returncode == 2
    assert f"{whole_run} already exists" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
