"""``safeladder plan``: what it prints, and what it says if something is missing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.cli import app

PROFILE = {
    "kv_tokens": 10**6,
    "max_sequences": 64,
    "speeds": [[1, 50.0], [64, 1000.0]],
    "link_bytes_per_s": None,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {
        "run": {"name": "r", "steps": 3, "root": str(tmp_path)},
        "model": {"path": "none"},
        "data": {"train": []},
        "principles": {"safety": {"verifier": "rewards.safety:SafetyRules"}},
        "routes": {"safety": {"safety": 1.0}},
        "rollout": {"num_gpus": 1.0, "group_size": 4},
        "learner": {"num_gpus": 1.0},
        "schedule": {"groups_per_step": 64, "max_staleness": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps({"rollout": {"rollout-0": PROFILE}}))
    return path


def plan(config: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(config), *options])


def measured(profiles: Path, *more: str) -> list[str]:
    rates = ["--lengths", "200,1024", "--train-tokens-per-s", "500"]
    return ["--profile", str(profiles), *rates, *more]


def test_the_best_split_is_named_by_the_keys_that_set_it(config: Path, profiles: Path) -> None:
    result = plan(config, "--gpus", "12", *measured(profiles))
    assert result.exit_code == 0, result.output
    assert "best: rollout.actors=4 (4 GPUs), learner.ranks=8 (8 GPUs)" in result.output
    assert "assumes responses of 200 tokens on average" in result.output
    assert "4 <" in result.output


def test_as_json_every_split_has_its_terms(config: Path, profiles: Path) -> None:
    result = plan(config, "--gpus", "12", "--json", *measured(profiles))
    found = json.loads(result.output)
    assert len(found["splits"]) == 11
    assert found["best"] in found["splits"]
    assert min(split["step_s"] for split in found["splits"]) == found["best"]["step_s"]


def test_an_earlier_run_stands_in_for_all_options(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "earlier"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    (run / "profiles.json").write_text(json.dumps({"rollout": {"rollout-0": PROFILE}}))
    rows = [
        {
            "kind": "train",
            "train/step": step,
            "train/trained_tokens": 5000.0,
            "train/length_mean": 200.0,
            "time/train_s": 10.0,
        }
        for step in range(1, 4)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = plan(config, "--gpus", "12", "--run", str(run))
    assert result.exit_code == 0, result.output
    assert "best: rollout.actors=4 (4 GPUs), learner.ranks=8 (8 GPUs)" in result.output


def test_what_is_missing_is_asked_for(config: Path, profiles: Path) -> None:
    assert "Give --profile profiles.json, or --run RUN" in plan(config).output
    only_profile = plan(config, "--profile", str(profiles))
    assert "Give --lengths mean,max, or --run RUN" in only_profile.output
    assert only_profile.exit_code == 2
    without_rate = plan(config, "--profile", str(profiles), "--lengths", "200,1024")
    assert "Give --train-tokens-per-s" in without_rate.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--lengths", "200"], "write mean,max"),
        (["--lengths", "2000,1000"], "must be from 1 to below 1000"),
        (["--lengths", "nothing.json"], "name a JSON file"),
        (["--scaling", "2"], "--scaling 2"),
        (["--train-tokens-per-s", "0"], "--train-tokens-per-s 0"),
        (["--verdict-s", "-1"], "--verdict-s -1"),
        (["--lengths", "5,inf"], "no response has inf tokens"),
        (["--verdict-s", "inf"], "--verdict-s inf"),
        (["--verdict-s", "nan"], "--verdict-s nan"),
        (["--train-tokens-per-s", "inf"], "--train-tokens-per-s inf"),
        (["--gpus", "99999999"], "--gpus"),
        (["--fleet", "h100"], "choose one with --fleet"),
        (["--gpus", "2", "rollout.num_gpus=2"], "2 GPUs hold no engine of 2"),
    ],
)
def test_what_cannot_be_is_refused_by_its_option(
    config: Path, profiles: Path, options: list[str], text: str
) -> None:
    result = plan(config, *measured(profiles), *options)
    assert result.exit_code == 2
    assert text in result.output.replace("\n", " ")


def test_a_profile_that_measured_no_speed_is_refused(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({"rollout": {"rollout-0": {**PROFILE, "speeds": []}}}))
    result = plan(config, *measured(path))
    assert "no engine of rollout has measured its speed" in result.output


def test_a_pipe_is_not_waited_for(config: Path, profiles: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    assert "a pipe or device" in plan(config, *measured(pipe)).output.replace("\n", " ")
    lengths = plan(config, *measured(profiles), "--lengths", str(pipe))
    assert "a pipe or device" in lengths.output.replace("\n", " ")


@pytest.mark.parametrize(
    "wrong", [{"max_sequences": 0}, {"max_sequences": "x"}, {"kv_tokens": None},
              {"speeds": [[1, float("nan")]]}],
)  # fmt: skip
def test_a_profile_that_no_engine_can_have_measured_is_refused(
    config: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps({"rollout": {"rollout-0": {**PROFILE, **wrong}}}))
    result = plan(config, *measured(path))
    assert result.exit_code == 2
    assert "is no file of profiles" in result.output.replace("\n", " ")
