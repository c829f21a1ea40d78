"""``safeladder replay``: real optimizer steps, taken again from what a run left on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.run_directory import RunDirectory
from cluster.transitions import GroupState
from learners.batches import read_batch, write_batch
from safeladder.records import TrainOrder
from tests.cluster.test_ledger import life
from tests.learners.ranks import Job, make_config, make_order, make_tiny_model, run_jobs

ROOT = Path(__file__).parents[2]
STEPS = 4
pytestmark = pytest.mark.engine


async def four_steps(learner: Any, arguments: dict[str, Any]) -> None:
    for step in range(1, STEPS + 1):
        await learner.train(make_order(step))
        if step in (2, 3):
            await learner.save_checkpoint(arguments["parent"], step, 1)
        await learner.publish(step, 1)


def trained_run(root: Path, model: Path, ranks: int) -> RunDirectory:
    config = make_config(model, root, ranks=ranks, epochs=2)
    run = RunDirectory.create(config)
    run_jobs(ranks, [Job(config, four_steps, {"parent": run.checkpoints})])
    with Ledger.open(run.ledger, config.run.name) as ledger:
        fence = ledger.raise_fence()
        for step in range(1, STEPS + 1):
            ledger.apply(life(step - 1, GroupState.TRAINED, step=step, version=step - 1), fence)
    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def original(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained_run(tmp_path_factory.mktemp("trained"), model, ranks=1)


@pytest.fixture
def run(original: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A run of one rank, to be damaged."""
    return RunDirectory(Path(shutil.copytree(original.path, tmp_path / "tiny")))


def replay(run: RunDirectory, steps: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", "replay", str(run.path), "--steps", steps, *options],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_step_of_one_rank_is_equal_bit_for_bit_from_the_base_model_on(
    original: RunDirectory,
) -> None:
    before = {path: path.stat().st_mtime_ns for path in original.path.rglob("*")}
    done = replay(original, "1..4", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(done)
    assert (report["start_step"], report["is_exact"], report["is_equal"]) == (0, True, True)
    assert [one["step"] for one in report["steps"]] == [1, 2, 3, 4]
    assert all(one["is_digest_compared"] for one in report["steps"])
    assert min(one["num_compared"] for one in report["steps"]) > 10
    assert len({one["digest"] for one in report["steps"]}) == 4
    assert before == {path: path.stat().st_mtime_ns for path in original.path.rglob("*")}


def test_a_replay_starts_at_the_newest_checkpoint_before_and_checks_its_weights(
    run: RunDirectory,
) -> None:
    damaged = run.checkpoints / "step-3" / "model.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = replay(run, "4")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"skipped: {damaged} differs from its SHA-256")
    assert lines[1] == f"starting from {run.checkpoints / 'step-2'}, step 2"
    assert [line.split(":")[0] for line in lines[2:5]] == ["start  2", "step 3", "step 4"]
    assert lines[-1] == "2 of 2 steps are equal bit for bit"


def test_a_reward_changed_in_a_batch_is_found_in_its_step_and_ends_with_7(
    run: RunDirectory,
) -> None:
    samples, _ = read_batch(run.batches / "step-4.safetensors")
    changed = [replace(samples[0], reward=samples[0].reward + 1e-3), *samples[1:]]
    write_batch(run.batches, TrainOrder(step=4, fence=1, groups=()), changed)
    done = replay(run, "4", "--json")
    assert done.returncode == 7
    assert "differs from its replay in steps 4" in done.stderr
    start, step = report_of(done)["steps"]
    assert (start["is_equal"], step["is_equal"]) == (True, False)
    names = {one["name"] for one in step["differences"]}
    assert {"weights", "loss", "grad_norm", "reward_mean"} <= names


def test_a_weight_changed_by_one_bit_under_a_new_checksum_is_found_at_the_start(
    run: RunDirectory,
) -> None:
    """Whoever can write a checkpoint can write its manifest; the digest stands elsewhere."""
    import hashlib

    checkpoint = run.checkpoints / "step-3"
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    done = replay(run, "4", "--json")
    assert done.returncode == 7, done.stderr
    start, step = report_of(done)["steps"]
    assert [one["name"] for one in start["differences"]] == ["weights"]
    assert not step["is_equal"]


def test_what_two_ranks_trained_is_compared_within_a_tolerance_and_says_so(
    model: Path, tmp_path: Path
) -> None:
    run = trained_run(tmp_path, model, ranks=2)
    done = replay(run, "1..4", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(done)
    assert (report["is_exact"], report["tolerance"]) == (False, 1e-3)
    assert report["inexact_because"] == ["it was trained by 2 ranks, and sums in another order"]
    assert not any(one["is_digest_compared"] for one in report["steps"])
    rows = [json.loads(line) for line in run.steps.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "step" and row["step"] == 3:
            row["metrics"]["loss"] += 0.01
    run.steps.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = replay(run, "3")
    assert done.returncode == 7
    assert "not bit for bit: it was trained by 2 ranks" in done.stdout
    assert "step 3: DIFFERS: loss was" in done.stdout
