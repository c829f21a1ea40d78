"""The table of a ladder: from the answers that its runs have kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.ladder import Runner, climb
from cluster.ladder_directory import LadderDirectory
from cluster.ladder_table import columns_of
from safeladder.config import Config
from safeladder.ladder_config import ladder_of

from .test_ladder import Runs

SCORES = {"01-kg": ([0.5, 0.5], [0.5, 1.0]), "02-joint": ([0.5, 1.0], [0.0, 0.5])}
"""Run → scores before and after, of two prompts."""


def row(number: int, score: float) -> dict[str, Any]:
    verdict = {
        "sample_id": f"-1/{number}/0", "principle": "safety", "verifier": "v",
        "verifier_version": "1", "status": "ok", "score": score, "cause": None,
    }  # fmt: skip
    return {
        "prompt_id": str(number), "response": "an answer", "finish_reason": "stop",
        "verdicts": {"safety": verdict},
    }  # fmt: skip


@pytest.fixture
def ladder(tmp_path: Path) -> LadderDirectory:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"base")
    held_out = tmp_path / "held.jsonl"
    prompts = [{"id": str(i), "prompt": f"q{i}", "route": "safety"} for i in range(2)]
    held_out.write_text("\n".join(map(json.dumps, prompts)) + "\n")
    tree = {
        "run": {"name": "up", "root": str(tmp_path / "runs")},
        "model": {"path": str(tmp_path / "base")},
        "data": {"train": [], "held_out": [str(held_out)]},
        "principles": {"safety": {"verifier": "rewards.safety:SafetyRules"}},
        "routes": {"safety": {"safety": 1.0}},
        "ladder": [
            {"name": "kg", "exit": {"steps": 1}},
            {"name": "joint", "exit": {"steps": 1}},
            {"name": "search", "exit": {"steps": 1}},
        ],
    }
    return LadderDirectory.create(ladder_of(tree))


def climb_and_answer(directory: LadderDirectory) -> None:
    """All rungs; the last one is not evaluated."""
    runs = Runs()

    def train(config: Config) -> int:
        runs.train(config)
        folder = config.run.directory / "evaluation"
        for stage, scores in zip(
            ("before", "after"), SCORES.get(config.run.name, ()), strict=False
        ):
            folder.mkdir(exist_ok=True)
            lines = [json.dumps(row(i, score)) for i, score in enumerate(scores)]
            (folder / f"{stage}.jsonl").write_text("\n".join(lines) + "\n")
        return 0

    climb(directory, Runner(train, runs.resume, runs.newest), lambda text: None)


def test_every_rung_stands_beside_the_base_and_not_beside_the_one_before(
    ladder: LadderDirectory,
) -> None:
    climb_and_answer(ladder)
    kg, joint = columns_of(ladder)
    changes = [column.changes["score/safety"] for column in (kg, joint)]
    assert [(c["before"], c["after"]) for c in changes] == [(0.5, 0.75), (0.5, 0.25)]
    assert [column.relative("score/safety") for column in (kg, joint)] == [0.5, -0.5]


def test_the_command_shows_rungs_and_evaluations(
    ladder: LadderDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    climb_and_answer(ladder)
    shown = CliRunner().invoke(app, ["ladder", str(ladder.path)])
    assert shown.exit_code == 0, shown.stderr
    assert "rungs/02-joint/checkpoints/step-1" in shown.stdout
    assert "75.0 (+25.0, +50 %" in shown.stdout
    assert "25.0 (-25.0, -50 %" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["ladder", str(ladder.path), "--json"]).stdout)
    assert [r["name"] for r in told["rungs"]] == ["kg", "joint", "search"]
    assert told["evaluations"][1]["metrics"]["score/safety"]["relative"] == -0.5


def test_rungs_that_are_not_begun_are_shown_too(ladder: LadderDirectory) -> None:
    shown = CliRunner().invoke(app, ["ladder", str(ladder.path)])
    assert shown.stdout.count("not begun") == 3


def test_a_folder_without_a_ladder_is_one_sentence(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["ladder", str(tmp_path)])
    assert shown.exit_code == 6
    assert "holds no ladder" in shown.stderr
