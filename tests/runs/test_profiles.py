"""Whole runs of other objectives than the default: trained, published, and taken again bit for bit
from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from learners.policy_model import VALUE_HEAD
from tests.runs.conftest import DETERMINISTIC, cluster, finished

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("profile", ["ppo", pytest.param("cale", marks=pytest.mark.slow)])
def test_a_run_of_a_profile_trains_and_replays(
    tiny_config: Callable[..., Path], profile: str
) -> None:
    overrides = DETERMINISTIC | {"learner": {"epochs": 2, "objective": {"profile": profile}}}
    run = finished(tiny_config(name=profile, steps=3, overrides=overrides))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "train/loss" in row]
    assert len(trained) == 3
    assert all(row["train/grad_norm"] > 0 for row in trained)
    has_head = profile == "ppo"
    assert all(("train/value_loss" in row) == has_head for row in trained)
    assert all(("train/kl_reference" in row) == has_head for row in trained)
    for step in (1, 2, 3):
        assert (run / f"checkpoints/step-{step}" / VALUE_HEAD).is_file() == has_head
    replayed = cluster("replay", str(run), "--steps", "2..3")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
