"""Checkpoints: whole or not at all, verified, fenced, retired."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from learners.checkpoints import (
    CheckpointManifest,
    commit_checkpoint,
    copy_model_files,
    latest_fence,
    newest_valid,
    take_over,
    verify,
    write_durably,
)
from safeladder.errors import (
    ChecksumError,
    EnvironmentUnfitError,
    FencedError,
    NotResumableError,
)


def manifest(step: int, fence: int = 1) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        version=step,
        fence=fence,
        num_updates=step,
        dtype="float32",
        config_sha256="0" * 64,
        extra={"watermark": "7"},
    )


def write_weights(folder: Path) -> Mapping[str, str]:
    return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}


def commit(root: Path, step: int, fence: int = 1, keep: int = 2) -> Path:
    return commit_checkpoint(root, manifest(step, fence), write_weights, keep=keep)


def test_a_commit_can_be_read_back_and_is_the_latest(tmp_path: Path) -> None:
    path = commit(tmp_path, 3)
    found = verify(path)
    assert (found.step, found.fence, found.extra) == (3, 1, {"watermark": "7"})
    assert json.loads((tmp_path / "LATEST").read_text()) == {"checkpoint": "step-3", "fence": 1}
    assert newest_valid(tmp_path) == (path, found, [])


def test_an_empty_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "none") == (None, None, [])


def test_a_flipped_byte_is_a_checksum_error_and_the_older_checkpoint_is_taken(
    tmp_path: Path,
) -> None:
    good, bad = commit(tmp_path, 1), commit(tmp_path, 2)
    (bad / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(ChecksumError, match="differs from its SHA-256"):
        verify(bad)
    path, _, [(skipped, why)] = newest_valid(tmp_path)
    assert (path, skipped) == (good, bad)
    found, expected = (hashlib.sha256(data).hexdigest() for data in (b"Weights", b"weights"))
    assert why == (
        f"{bad}/model.safetensors differs from its SHA-256 in manifest.json: it has "
        f"{found[:16]}…, expected was {expected[:16]}…"
    )


def test_a_newer_checkpoint_that_was_not_finished_is_told_and_an_older_one_is_not(
    tmp_path: Path,
) -> None:
    good = commit(tmp_path, 3, fence=2)
    newer, older = tmp_path / ".partial-2-step-4", tmp_path / ".partial-1-step-9"
    newer.mkdir()
    older.mkdir()
    path, _, [(skipped, why)] = newest_valid(tmp_path)
    assert (path, skipped) == (good, newer)
    assert "is partial: its writer was ended" in why


def test_a_checkpoint_under_another_name_is_not_taken(tmp_path: Path) -> None:
    good = commit(tmp_path, 1)
    renamed = commit(tmp_path, 2).rename(tmp_path / "step-7")
    path, _, [(skipped, why)] = newest_valid(tmp_path)
    assert (path, skipped) == (good, renamed)
    assert why.endswith("step-7/manifest.json is of step 2")


def test_a_checkpoint_up_to_a_step_can_be_asked_for(tmp_path: Path) -> None:
    paths = [commit(tmp_path, step, keep=9) for step in (1, 2, 4)]
    assert [newest_valid(tmp_path, up_to=step)[0] for step in (0, 1, 3, 4)] == [
        None, paths[0], paths[1], paths[2],
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["manifest.json", "model.safetensors"])
def test_a_missing_file_makes_a_checkpoint_not_resumable(tmp_path: Path, damage: str) -> None:
    path = commit(tmp_path, 1)
    (path / damage).unlink()
    with pytest.raises(NotResumableError, match=damage):
        verify(path)
    assert newest_valid(tmp_path)[0] is None


def test_an_unreadable_manifest_is_skipped_with_the_reason(tmp_path: Path) -> None:
    path = commit(tmp_path, 1)
    (path / "manifest.json").write_text("{")
    assert "cannot be read" in newest_valid(tmp_path)[2][0][1]
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    assert "cannot be read" in newest_valid(tmp_path)[2][0][1]


@pytest.mark.parametrize(
    "change",
    [
        {"files": [1]},
        {"files": {"model.safetensors": 1}},
        {"extra": "x"},
        {"step": "1"},
        {"fence": None},
        {"dtype": 5},
    ],
)
def test_a_manifest_with_other_types_is_skipped_with_the_reason(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = commit(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "manifest.json cannot be read" in newest_valid(tmp_path)[2][0][1]


def test_a_killed_write_leaves_the_previous_checkpoint_untouched(tmp_path: Path) -> None:
    good = commit(tmp_path, 1)

    def killed(folder: Path) -> Mapping[str, str]:
        write_weights(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commit_checkpoint(tmp_path, manifest(2), killed, keep=2)
    assert newest_valid(tmp_path)[0] == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-1"]


def test_what_a_killed_process_left_is_removed_by_the_next_commit(tmp_path: Path) -> None:
    (tmp_path / ".partial-1-step-9").mkdir()
    commit(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-1"]


def test_a_lower_fence_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    commit(tmp_path, 5, fence=4)
    with pytest.raises(FencedError, match="fence 4"):
        commit(tmp_path, 6, fence=3)
    assert latest_fence(tmp_path) == 4
    assert not (tmp_path / "step-6").exists()


def test_a_fence_that_rises_during_the_write_is_noticed(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> Mapping[str, str]:
        files = write_weights(folder)
        commit(tmp_path, 1, fence=9)
        return files

    with pytest.raises(FencedError):
        commit_checkpoint(tmp_path, manifest(2, fence=3), overtaken, keep=2)
    assert not (tmp_path / "step-2").exists()


def test_a_driver_that_was_replaced_commits_nothing_though_its_successor_has_not_yet_saved(
    tmp_path: Path,
) -> None:
    before = commit(tmp_path, 2, fence=1, keep=1)
    take_over(tmp_path, 2)
    with pytest.raises(FencedError, match="fence 2"):
        commit(tmp_path, 4, fence=1, keep=1)
    assert newest_valid(tmp_path)[0] == before, "it retired what its successor goes on from"
    assert newest_valid(commit(tmp_path, 3, fence=2).parent)[0] == tmp_path / "step-3"


def test_a_checkpoint_with_a_veto_is_skipped_with_the_reason(tmp_path: Path) -> None:
    good, bad = commit(tmp_path, 1), commit(tmp_path, 2)
    found = newest_valid(tmp_path, veto=lambda manifest: "no" if manifest.step == 2 else None)
    assert (found[0], found[2]) == (good, [(bad, "no")])


def test_a_later_driver_is_newer_whatever_its_step(tmp_path: Path) -> None:
    commit(tmp_path, 20, fence=1, keep=9)
    resumed = commit(tmp_path, 12, fence=2, keep=9)
    assert newest_valid(tmp_path)[0] == resumed


def test_a_step_done_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    commit(tmp_path, 2, fence=1)
    assert verify(commit(tmp_path, 2, fence=2)).fence == 2


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 5):
        commit(tmp_path, step)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-3", "step-4"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def on_a_full_disk(folder: Path) -> Mapping[str, str]:
        return {"full": write_durably(Path("/dev/full"), b"weights")}

    with pytest.raises(EnvironmentUnfitError, match=str(tmp_path)):
        commit_checkpoint(tmp_path, manifest(1), on_a_full_disk, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_model_files_are_copied_without_weights_and_with_the_new_dtype(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    (source / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", "hidden_size": 8}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "model.safetensors").write_bytes(b"old")
    (source / "model.safetensors.index.json").write_text("{}")
    (source / "manifest.json").write_text("{}")
    written = copy_model_files(source, folder, "float32")
    assert set(written) == {"config.json", "chat_template.jinja"}
    assert json.loads((folder / "config.json").read_text()) == {
        "hidden_size": 8,
        "dtype": "float32",
    }


def test_what_a_driver_went_back_behind_takes_no_place_of_those_that_are_kept(
    tmp_path: Path,
) -> None:
    for step in (2, 4, 6):
        commit(tmp_path, step)
    commit(tmp_path, 5, fence=2)  # it went on from step 4, since step 6 was damaged or too late
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-4", "step-5"]
