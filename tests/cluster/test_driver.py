"""What a run is resumed with, and when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.driver import initial_policy, newest_checkpoint, resume
from cluster.ledger import Ledger
from cluster.run import Run
from cluster.run_directory import RunDirectory, Status
from learners.checkpoints import CheckpointManifest, commit_checkpoint, write_durably
from safeladder.config import Config
from safeladder.errors import NotResumableError

from .coordinator_play import make_config

SFT = {"data": ["sft.jsonl"]}
KL = {"kl_coefficient": 0.1}


def make_run(tmp_path: Path, **sections: dict[str, object]) -> tuple[Config, RunDirectory]:
    config = make_config(run={"root": str(tmp_path)}, **sections)
    return config, RunDirectory.create(config)


def save(root: Path, step: int) -> Path:
    """A checkpoint of a few bytes."""
    manifest = CheckpointManifest(
        step=step, version=step, fence=1, num_updates=0, dtype="float32", config_sha256=""
    )

    def write(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}

    return commit_checkpoint(root, manifest, write, keep=9)


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


def test_a_checkpoint_that_a_living_driver_removed_meanwhile_is_noticed_before_the_fence(
    tmp_path: Path,
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hello", "route": "safety"}\n')
    config, run = make_run(tmp_path, data={"train": [str(rows)]})
    with Ledger.open(run.ledger, config.run.name) as ledger:
        fence = ledger.raise_fence()
    chosen = save(run.checkpoints, 1)
    resumed = Run(config, run, chosen, config.model.path)
    shutil.rmtree(chosen)
    with pytest.raises(NotResumableError, match="another driver of the run is alive"):
        resumed.execute()
    with Ledger.open(run.ledger, config.run.name) as ledger:
        assert ledger.raise_fence() == fence + 1, "the failed start raised none"
