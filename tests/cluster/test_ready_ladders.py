"""Every ladder in ``configs/ladders`` is sound as far as this machine can tell, and says of each
value whether it was published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.ladder_checks import check_rungs
from cluster.modelless_checks import NOT_CHECKED, check_without_model
from safeladder.errors import ConfigError
from safeladder.ladder_config import load_ladder

from .checked_setup import build, save_headers
from .test_ladder_checks import JOINT, ladder

FOLDER = Path("configs/ladders")
SEVEN = FOLDER / "qwen2.5-vl-7b.yaml"
LADDERS = {
    "7b": ([SEVEN], 8.3, 8, 40.0),
    "72b": ([SEVEN, FOLDER / "qwen2.5-vl-72b.yaml"], 73.4, 128, 80.0),
    "78b": ([SEVEN, FOLDER / "internvl3-78b.yaml"], 78.4, 128, 80.0),
    "70b": ([FOLDER / "deepseek-r1-distill-llama-70b.yaml"], 70.6, 128, 80.0),
    "135m": ([FOLDER / "smollm2.yaml"], 0.135, 0, 80.0),
}
"""Files, parameters in billions, GPUs of the cluster, most GiB of weights and optimizer on one."""


@pytest.fixture(autouse=True)
def search_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """smollm2's last rung asks about the demo's library; its rows are made, not kept."""
    from demo import search_data

    search_data.main(tmp_path / "search")


@pytest.mark.parametrize("name", LADDERS)
def test_a_ready_ladder_is_sound_and_fits_its_cluster(name: str, tmp_path: Path) -> None:
    from cluster.modelless_checks import stand_in
    from cluster.resource_plan import resource_plan

    files, billions, gpus, most = LADDERS[name]
    made = {"data.train": "train", "data.held_out": "heldout", "sft.data": "sft"}
    here = [f"ladder.search.{k}=[{tmp_path}/search/{file}.jsonl]" for k, file in made.items()]
    found = load_ladder(files, here if name == "135m" else [])
    check_rungs(found, check_without_model)
    for rung in found.rungs:
        plan = resource_plan(rung.config, stand_in(Path("m"), billions))
        assert sum(line.actors * line.num_gpus for line in plan) <= gpus
        for line in plan:
            if line.num_gpus:
                assert line.num_bytes / line.num_gpus / 2**30 < most, line.role


def test_every_value_of_the_big_ladders_says_where_it_is_from() -> None:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name == "smollm2.yaml":
            continue
        unmarked, is_marked = [], False
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            text = line.split("#")[0].rstrip()
            has_mark = "# ours" in line or "# published" in line
            if not text:
                is_marked = has_mark or (is_marked and bool(line.strip()))
                continue
            opens = text.endswith((":", ">-")) or text.lstrip().startswith("- name")
            if opens or has_mark:
                is_marked = has_mark or (is_marked and not text.lstrip().startswith("- name"))
                continue
            if not is_marked:
                unmarked.append(f"{path}:{number}: {line}")
        assert unmarked == []


def test_check_without_the_model_says_what_it_left_out() -> None:
    done = CliRunner().invoke(app, ["check", str(SEVEN), "--without-model", "8.3"])
    assert done.exit_code == 0, done.stderr
    assert "4 rungs: sound, as far as it was checked" in done.stdout
    assert NOT_CHECKED in " ".join(done.stdout.split())
    with_model = CliRunner().invoke(app, ["check", str(SEVEN)])
    assert with_model.exit_code == 3
    assert "ladder.cot-sft: model models/Qwen2.5-VL-7B-Instruct" in with_model.stderr


THINK: dict[str, Any] = {
    "principles": {"form": {"verifier": "rewards.format:ThinkFormat"}},
    "routes": {"task": {"exact": 1.0, "form": 1.0}, "safety": {"exact": 1.0}},
}


def test_a_format_that_nothing_tells_the_model_of_is_refused_by_the_name_of_its_rung(
    tmp_path: Path,
) -> None:
    save_headers(tmp_path / "model")
    build(tmp_path)
    with pytest.raises(ConfigError, match=r"ladder\.joint: principles\.form wants <think>"):
        check_rungs(ladder(tmp_path, JOINT | THINK))
    told = JOINT | THINK | {"model": {"system_prompt": "Use <think> </think> first."}}
    check_rungs(ladder(tmp_path, told))
    shown = tmp_path / "sft.jsonl"
    shown.write_text(json.dumps({"prompt": "q", "response": "<think>so</think> a"}) + "\n")
    first = {"name": "first", "exit": {"steps": 1}, "sft": {"data": [str(shown)]}}
    check_rungs(ladder(tmp_path, first, JOINT | THINK))
