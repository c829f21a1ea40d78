"""What a run is resumed with, and when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.driver import initial_policy, resume
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


def save_initial(run: RunDirectory) -> Path:
    """What the supervised rung leaves."""
    manifest = CheckpointManifest(
        step=0, version=0, fence=1, num_updates=0, dtype="float32", config_sha256=""
    )

    def write(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}

    return commit_checkpoint(run.initial, manifest, write, keep=1)


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


def test_a_finished_run_is_not_resumed_and_stays_finished(tmp_path: Path) -> None:
    _, run = make_run(tmp_path)
    finished = Status(state="finished", pid=2**22 + 1, step=3, version=3, exit_code=0)
    run.write_status(finished)
    with pytest.raises(NotResumableError, match="already finished all of its 3 steps") as caught:
        resume(run.path)
    run.record_failure(caught.value, take_over=True)
    assert run.status() == finished
