"""Runs whose stage passes over rows, through the command line: a run directory like any other, and
a run that is killed and resumed is the run that nobody killed, bit for bit on one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safeladder.commit_points import VARIABLE

from .conftest import Tree, cluster, finished, train
from .readings import metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(900)]

STEPS, EPOCH = 12, 4
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"Say {i}", "response": f"{i} it is"} for i in range(20)],
    "preference": [
        {"prompt": f"Say {i}", "chosen": f"{i} it is", "rejected": "no, I will not"}
        for i in range(20)
    ],
    "value_model": [
        {
            "prompt": f"Say {i}",
            "prefix": ("yes", "no")[i % 2],
            "returns": {"safety": 1 - i % 2} | ({"rule": i % 2} if i % 4 < 2 else {}),
        }
        for i in range(20)
    ],
}
SECTIONS: dict[str, Tree] = {
    "sft": {"schedule": "cosine", "warmup_ratio": 0.1},
    "preference": {},
    "value_model": {"principles": ["safety", "rule"]},
}


def write_stage(folder: Path, model: Path, stage: str, name: str, epochs: int = 3) -> Path:
    """The config of a stage of 4 steps an epoch over 16 rows, 4 more being for validation."""
    rows = folder / f"{stage}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[stage]))
    shared = {"data": [str(rows)], "epochs": epochs, "lr": 1e-2, "batch_size": 4}
    tree: Tree = {
        "stage": stage,
        "run": {"name": name, "root": str(folder / "runs"), "deterministic": True},
        "model": {"path": str(model), "dtype": "float32"},
        "rollout": {"engine": "transformers"},
        "schedule": {"max_staleness": 0},
        stage: {**shared, "validation_share": 0.2, **SECTIONS[stage]},
        "learner": {"micro_batch_tokens": 256},
        "checkpoint": {"every_steps": 4, "keep": 3},
        "monitor": {"wandb": "off"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(tree))
    return path


def files(run: Path) -> dict[str, str]:
    """File → SHA-256 of the last checkpoint."""
    manifest = json.loads((run / f"checkpoints/step-{STEPS}/manifest.json").read_text())
    found: dict[str, str] = manifest["files"]
    return found


def killed(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train until the driver is killed: step 4 is saved, 5 and 6 are taken, 8 is not asked for.
    The run's folder."""
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "step.told:6")
        assert train(config).returncode != 0
    run = config.parent / "runs" / config.stem
    assert not (run / "summary.json").exists()
    return run


def taken(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps that the learner took, one after another, and what it says of each."""
    rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return [(row["step"], row["metrics"]) for row in rows if row["kind"] == "step"]


def test_a_resumed_stage_takes_the_steps_after_its_checkpoint_again_to_the_bit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed(write_stage(tmp_path, tiny_model, "sft", "killed", epochs=2), monkeypatch)
    first = taken(run)

    done = cluster("resume", str(run))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    again = taken(run)[len(first) :]
    assert len(first) >= 6, "the second of the steps taken again shows AdamW's state too"
    assert [step for step, _ in again] == list(range(5, 2 * EPOCH + 1))
    assert first[4:] == again[: len(first) - 4]
    assert sorted(metrics(run)) == list(range(1, 2 * EPOCH + 1))
    loss = json.loads((run / "summary.json").read_text())["validation"]["loss"]
    assert loss["after"] < loss["before"], "before was measured by the driver that was killed"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ROWS)
def test_a_stage_killed_and_resumed_is_the_stage_that_nobody_killed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = finished(write_stage(tmp_path, tiny_model, stage, "whole"))
    run = killed(write_stage(tmp_path, tiny_model, stage, "killed"), monkeypatch)

    done = cluster("resume", str(run))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout
    assert metrics(run) == metrics(whole)
    assert sorted(metrics(run)) == list(range(1, STEPS + 1))
    assert files(run) == files(whole)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stage"], summary["steps"], summary["rows"]) == (stage, STEPS, 20)
    loss = summary["validation"]["loss"]
    assert loss["after"] < loss["before"], "before was measured by the driver that was killed"
    assert cluster("ledger", str(run)).returncode == 0
    assert (run / "report.html").is_file()
    again = cluster("resume", str(run))
    assert (again.returncode, "finished all of its 12 steps" in again.stderr) == (6, True)


def test_a_part_is_trained_until_the_policy_prefers_its_chosen_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_stage(tmp_path, tiny_model, "preference", "until")
    tree = json.loads(config.read_text())
    tree["preference"]["until_accuracy"] = 0.8
    config.write_text(json.dumps(tree))
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, "loop.finished")
        assert train(config).returncode != 0
    run = tmp_path / "runs" / "until"
    steps = taken(run)
    assert len(steps) in (EPOCH, 2 * EPOCH), "it ends with a pass, and not with the last one"
    accuracies = [metrics["accuracy"] for _, metrics in steps]
    assert sum(accuracies[-EPOCH:]) / EPOCH >= 0.8
    assert all(
        sum(accuracies[n : n + EPOCH]) / EPOCH < 0.8 for n in range(0, len(steps) - EPOCH, 4)
    )

    done = cluster("resume", str(run))

    assert done.returncode == 0, done.stdout + done.stderr
    assert taken(run) == steps, "the resumed run knows what the pass had measured"
    assert json.loads((run / "summary.json").read_text())["steps"] == len(steps)
