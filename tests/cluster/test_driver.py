"""What a run is resumed with, and when it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.driver import resume
from cluster.ledger import Ledger
from cluster.resume_point import ResumePoint, initial_policy, newest_checkpoint
from cluster.run_directory import RunDirectory, Status
from cluster.transitions import GroupState
from learners.checkpoints import (
    CheckpointManifest,
    commit_checkpoint,
    take_over,
    write_durably,
)
from safeladder.config import Config
from safeladder.errors import FencedError, NotResumableError

from .coordinator_play import make_config
from .test_ledger import life

SFT = {"data": ["sft.jsonl"]}
KL = {"kl_coefficient": 0.1}


def make_run(tmp_path: Path, **sections: dict[str, object]) -> tuple[Config, RunDirectory]:
    config = make_config(run={"root": str(tmp_path)}, **sections)
    return config, RunDirectory.create(config)


def save(
    root: Path,
    step: int,
    *,
    keep: int = 9,
    before_retiring: Callable[[], None] = lambda: None,
) -> Path:
    """A checkpoint of a few bytes, of the driver with fence 1."""
    manifest = CheckpointManifest(
        step=step, version=step, fence=1, num_updates=0, dtype="float32", config_sha256=""
    )

    def write(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "learners.checkpoints.reached",
            lambda point, *_: before_retiring() if point == "checkpoint.latest_replaced" else None,
        )
        return commit_checkpoint(root, manifest, write, keep=keep)


def save_initial(run: RunDirectory) -> Path:
    """What the supervised rung leaves."""
    return save(run.initial, 0)


def test_the_reference_is_the_base_model_without_a_supervised_rung(tmp_path: Path) -> None:
    config, run = make_run(tmp_path)
    assert initial_policy(config, run) == config.model.path


def test_the_reference_is_what_the_supervised_rung_left(tmp_path: Path) -> None:
    config, run = make_run(tmp_path, sft=SFT, reference=KL)
    saved = save_initial(run)
    assert initial_policy(config, run) == saved


def test_a_damaged_reference_is_not_replaced_by_the_base_model(tmp_path: Path) -> None:
    config, run = make_run(tmp_path, sft=SFT, reference=KL)
    with pytest.raises(NotResumableError, match="nothing is there"):
        initial_policy(config, run)
    (save_initial(run) / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(NotResumableError, match=r"model\.safetensors differs from its SHA-256"):
        initial_policy(config, run)


def test_a_damaged_reference_that_is_not_used_does_not_matter(tmp_path: Path) -> None:
    config, run = make_run(tmp_path, sft=SFT)
    assert initial_policy(config, run) == config.model.path


def test_a_resume_says_of_each_newer_checkpoint_why_it_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, run = make_run(tmp_path)
    good, damaged, headless = (save(run.checkpoints, step) for step in (1, 2, 3))
    (damaged / "model.safetensors").write_bytes(b"Weights")
    (headless / "manifest.json").unlink()
    (run.checkpoints / ".partial-1-step-4").mkdir()
    path, sentences = newest_checkpoint(run)
    assert path == good
    assert [sentence.partition(f"{run.checkpoints}/")[2] for sentence in sentences] == [
        "step-3 has no manifest.json: it was not finished",
        "step-2/model.safetensors differs from its SHA-256 in manifest.json: it has "
        "147ec15498661dd9…, expected was 9a129038d9a00aed…",
        ".partial-1-step-4 is partial: its writer was ended before it was whole",
    ]
    assert [record.getMessage() for record in caplog.records] == sentences


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    _, run = make_run(tmp_path, sft=SFT, reference=KL)
    (run.checkpoints / ".partial-1-step-1").mkdir()
    path, (sentence,) = newest_checkpoint(run)
    assert path is None
    assert ".partial-1-step-1 is partial" in sentence


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_a_run_whose_checkpoints_are_lost_does_not_begin_anew(tmp_path: Path, loss: str) -> None:
    _, run = make_run(tmp_path)
    checkpoint = save(run.checkpoints, 2)
    if loss == "damaged":
        (checkpoint / "model.safetensors").write_bytes(b"Weights")
    else:
        shutil.rmtree(checkpoint)
    with pytest.raises(NotResumableError, match=f"step-2: .*differs|all are {loss}"):
        newest_checkpoint(run)


def test_a_finished_run_is_not_resumed_and_stays_finished(tmp_path: Path) -> None:
    _, run = make_run(tmp_path)
    finished = Status(state="finished", pid=2**22 + 1, step=3, version=3, exit_code=0)
    run.write_status(finished)
    with pytest.raises(NotResumableError, match="already finished all of its 3 steps") as caught:
        resume(run.path)
    run.record_failure(caught.value, take_over=True)
    assert run.status() == finished


def take(config: Config, run: RunDirectory, point: ResumePoint) -> tuple[ResumePoint, int]:
    """What a driver that found ``point`` goes on from, and its fence."""
    settled = [point]

    def settle(fence: int) -> int:
        settled.append(point.settle(config, run, fence))
        return settled[-1].step

    with Ledger.open(run.ledger, config.run.name) as ledger:
        fence = ledger.raise_fence(settle)
    return settled[-1], fence


def teach(run: RunDirectory, config: Config, steps: int) -> int:
    """A ledger that has trained a group in each of so many steps; returns its driver's fence."""
    with Ledger.open(run.ledger, config.run.name) as ledger:
        fence = ledger.raise_fence()
        for step in range(1, steps + 1):
            for transition in life(step - 1, GroupState.TRAINED, step=step):
                ledger.apply([transition], fence)
    return fence


def test_a_run_whose_checkpoints_stayed_goes_on_from_the_one_that_was_found(tmp_path: Path) -> None:
    config, run = make_run(tmp_path)
    fence = teach(run, config, 1)
    save(run.checkpoints, 1)
    found = ResumePoint.find(config, run)
    assert take(config, run, found) == (found, fence + 1)


def test_what_a_driver_that_was_thought_dead_saved_meanwhile_is_gone_on_from(
    tmp_path: Path,
) -> None:
    config, run = make_run(tmp_path)
    fence = teach(run, config, 2)
    save(run.checkpoints, 1)
    found = ResumePoint.find(config, run)
    newer = save(run.checkpoints, 2, keep=1)  # which retires the one that was found
    settled, raised = take(config, run, found)
    assert (settled.checkpoint, settled.step, raised) == (newer, 2, fence + 1)
    with pytest.raises(FencedError, match=f"fence {fence + 1}"):
        save(run.checkpoints, 3)


def test_a_driver_retires_no_checkpoint_that_its_successor_may_have_chosen(tmp_path: Path) -> None:
    _, run = make_run(tmp_path)
    chosen = save(run.checkpoints, 1)
    with pytest.raises(FencedError):
        save(
            run.checkpoints,
            2,
            keep=1,
            before_retiring=lambda: take_over(run.checkpoints, 2),
        )
    assert chosen.is_dir()


def test_a_start_that_finds_no_checkpoint_any_more_takes_nothing_back(tmp_path: Path) -> None:
    config, run = make_run(tmp_path)
    fence = teach(run, config, 1)
    chosen = save(run.checkpoints, 1)
    found = ResumePoint.find(config, run)
    (chosen / "model.safetensors").write_bytes(b"Weights")
    (chosen / "manifest.json").touch()
    with pytest.raises(NotResumableError, match="differs"):
        take(config, run, found)
    with Ledger.open(run.ledger, config.run.name) as ledger:
        ledger.require_newest(fence)
