"""Constraint weights over a kill: conversations, deterministic, resumed from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.replay import replay
from cluster.run_directory import RunDirectory

from .conftest import DETERMINISTIC, Tree, finished, write_config
from .readings import assert_same_batch, metrics
from .test_resume import kill_when, newest_checkpoint, resume

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 4
TALK: Tree = {
    "rollout": {
        "group_size": 6, "max_new_tokens": 16, "max_prompt_tokens": 160,
        "environment": {"kind": "scripted", "max_turn_tokens": 8, "reply_tokens": 60},
    },
    "constraints": {
        "long": {
            "weighs": "stop", "rate": {"token_limit": 12}, "bound": 1.2, "eta": 1.0, "start": 0.3,
        }
    },
}  # fmt: skip


def config_of(folder: Path, model: Path, name: str) -> Path:
    path = write_config(folder, model, name, STEPS, {**DETERMINISTIC, **TALK})
    tree = json.loads(path.read_text())
    rows = Path(tree["data"]["train"][0])
    talks = [{**json.loads(row), "turns": ["go on"]} for row in rows.read_text().splitlines()]
    rows.write_text("\n".join(map(json.dumps, talks)) + "\n")
    return path


def lambdas(run: Path) -> list[float]:
    return [row["constraint/long/lambda"] for _, row in sorted(metrics(run).items())]


def test_a_resumed_run_has_the_lambdas_of_the_run_that_nobody_killed(
    tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("whole", "split"):
        (tmp_path / name).mkdir()
    whole = finished(config_of(tmp_path / "whole", tiny_model, "run"))
    expected = lambdas(whole)
    assert len(set(expected)) == STEPS, "lambda moved with every step"
    config = config_of(tmp_path / "split", tiny_model, "run")
    run = kill_when(config, lambda run: newest_checkpoint(run) >= 2)
    done = resume(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert lambdas(run) == expected
    for step in range(1, STEPS + 1):
        assert_same_batch(run, whole, step)
    found = replay(RunDirectory.open(run))
    assert (found.disagreements, found.gaps) == ([], [])
