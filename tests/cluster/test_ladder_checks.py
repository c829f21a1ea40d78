"""What is wrong with a ladder is told before its first rung starts, with the name of the rung."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.ladder_checks import check_command, check_rungs
from cluster.model_folder import read_model_folder
from learners.checkpoints import write_index
from safeladder.errors import ConfigError, SafeladderError
from safeladder.ladder_config import Ladder, ladder_of

from .checked_setup import build, save_headers, write_safetensors

TASK: dict[str, Any] = {"name": "task", "exit": {"steps": 2}, "routes": {"task": {"exact": 1.0}}}
JOINT: dict[str, Any] = {"name": "joint", "exit": {"steps": 2}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_headers(tmp_path / "model")


def ladder(tmp_path: Path, *rungs: dict[str, Any]) -> Ladder:
    tree = build(tmp_path).model_dump(mode="json", exclude_unset=True)
    del tree["run"]["steps"]
    return ladder_of(tree | {"ladder": list(rungs)})


def rows_of(tmp_path: Path, name: str, *routes: str) -> str:
    path = tmp_path / name
    rows = [{"id": f"{route}{i}", "prompt": "q", "route": route} for i, route in enumerate(routes)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_a_sound_ladder_passes_starts_nothing_and_shows_a_plan_for_each_rung(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = TASK | {"data": {"train": [rows_of(tmp_path, "task.jsonl", "task")]}}
    assert check_command(ladder(tmp_path, task, JOINT)) == 0
    shown = capsys.readouterr().out
    assert "rung 01-task" in shown
    assert "rung 02-joint" in shown
    assert shown.count("Resource plan") == 2
    assert not (tmp_path / "runs").exists()


def test_a_rung_whose_data_has_no_row_for_a_label_is_named(tmp_path: Path, model: Path) -> None:
    joint = JOINT | {"data": {"train": [rows_of(tmp_path, "safe.jsonl", "safety")]}}
    task = TASK | {"data": {"train": [rows_of(tmp_path, "task.jsonl", "task")]}}
    with pytest.raises(ConfigError, match=r"ladder\.joint: routes\.task: data\.train has no row"):
        check_rungs(ladder(tmp_path, task, joint))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"data": {"train": ["gone.jsonl"]}}, r"ladder\.joint: gone\.jsonl"),
        ({"learner": {"train_last_layers": 9}}, r"ladder\.joint: learner\.train_last_layers 9"),
        ({"model": {"chat_template": "{% if %}"}}, r"ladder\.joint: model\.chat_template"),
    ],
)
def test_what_is_wrong_with_a_later_rung_is_told_before_the_first_starts(
    tmp_path: Path, model: Path, keys: dict[str, Any], sentence: str
) -> None:
    first = {"name": "first", "exit": {"steps": 1}}
    with pytest.raises(SafeladderError, match=sentence) as caught:
        check_rungs(ladder(tmp_path, first, JOINT | keys))
    assert caught.value.exit_code in (2, 3)


def test_a_climb_is_prepared_before_ray_is_loaded() -> None:
    """Ray reads its settings from the environment as it is imported."""
    code = "import sys, cluster.ladder_command; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_a_rung_takes_over_no_constraint_weights_that_the_one_before_has_not(
    tmp_path: Path, model: Path
) -> None:
    task = TASK | {"data": {"train": [rows_of(tmp_path, "task.jsonl", "task")]}}
    joint = JOINT | {"carry_over": {"constraint_weights": True}}
    with pytest.raises(ConfigError, match=r"ladder\.joint: carry_over\.constraint_weights: .*task"):
        check_rungs(ladder(tmp_path, task, joint))


def test_a_checkpoint_counts_as_the_model_in_it(tmp_path: Path, model: Path) -> None:
    before = read_model_folder(model)
    write_safetensors(model / "optimizer.safetensors", {"model.layers.0.mlp.weight.m": [99, 99]})
    shapes = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(3))]
    write_index(model, shapes)
    assert read_model_folder(model) == before
