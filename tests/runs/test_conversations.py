"""Whole runs whose samples are conversations: two steps of RL on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.history import read_lines
from cluster.replay import replay
from cluster.run_directory import RunDirectory
from learners.batches import batch_path, read_batch

from .conftest import Tree, cluster, finished
from .readings import metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(600)]

CORPUS = Path(__file__).resolve().parents[2] / "demo" / "library"
MASKS = {"max_prompt_tokens": 160, "max_new_tokens": 24, "group_size": 4}


def written(folder: Path, rows: list[Tree]) -> list[str]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return [str(path)]


def only(config: Path, route: str) -> Path:
    """The config with this one route, and the principles that judge it."""
    tree = json.loads(config.read_text())
    tree["routes"] = {route: tree["routes"][route]}
    tree["principles"] = {name: tree["principles"][name] for name in tree["routes"][route]}
    config.write_text(json.dumps(tree))
    return config


def test_a_search_run_trains_under_its_constraint_and_is_replayed(
    tmp_path: Path, tiny_config: Callable[..., Path]
) -> None:
    questions = [
        {"id": f"q{i}", "prompt": f"Which river? {i}", "route": "search", "reference": "Aske"}
        for i in range(4)
    ]
    overrides: Tree = {
        "data": {"train": written(tmp_path, questions)},
        "principles": {
            "search_format": {"verifier": "rewards.search:SearchFormat"},
            "search_accuracy": {"verifier": "rewards.search:SearchAccuracy"},
            "reliability": {"verifier": "rewards.search:SearchReliability"},
        },
        "routes": {"search": {"search_format": 0.1, "search_accuracy": 0.9, "reliability": 1.0}},
        "reward": {"gates": ["search_format"], "gates_earn": True, "filter_zero_variance": False},
        "constraints": {
            "false_certain": {
                "weighs": "reliability",
                "rate": {"principle": "reliability", "labels": ["wrong and certain"]},
                "bound": 0.05,
            }
        },
        "rollout": {
            **MASKS,
            "environment": {
                "kind": "search", "options": {"corpus": str(CORPUS), "read_tokens": 150},
                    "max_turn_tokens": 12,
                "reply_tokens": 200, "max_turns": 3,
            },
        },
    }  # fmt: skip
    config = only(tiny_config(name="search", overrides=overrides), "search")
    checked = cluster("check", str(config))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    run = RunDirectory.open(finished(config))
    rows = metrics(run.path)
    weights = [rows[step]["constraint/false_certain/lambda"] for step in (1, 2)]
    assert weights[0] == pytest.approx(0.1 * np.exp(0.2 * -0.05)), "a random model says nothing"
    assert weights[1] < weights[0]
    found = replay(run)
    assert (found.disagreements, found.gaps) == ([], [])
    factors = {row["factors"]["reliability"] for row in read_lines(run.verdicts) if "call" in row}
    assert factors <= {0.1, *weights}
    assert 0.1 in factors
    labels = {row["label"] for row in read_lines(run.verdicts) if row.get("label")}
    assert "malformed" in labels


def test_what_an_environment_says_is_in_the_batch_and_in_no_loss_or_length(
    tmp_path: Path, tiny_config: Callable[..., Path]
) -> None:
    said = "And why is that so, do you think?"
    rows = [
        {"id": f"q{i}", "prompt": f"Hello {i}?", "route": "normal", "turns": [said]}
        for i in range(4)
    ]
    overrides: Tree = {
        "data": {"train": written(tmp_path, rows)},
        "rollout": {
            **MASKS,
            "environment": {"kind": "scripted", "max_turn_tokens": 10, "reply_tokens": 120},
        },
        "reference": {"kl_coefficient": 0.01},
    }
    config = only(tiny_config(name="talk", overrides=overrides), "normal")
    run = RunDirectory.open(finished(config))
    for step, row in metrics(run.path).items():
        samples, _ = read_batch(batch_path(run.batches, step))
        told = [int((sample.loss_mask == 0).sum()) for sample in samples]
        sampled = [int(sample.loss_mask.sum()) for sample in samples]
        assert all(len(said) < n < len(said) + 60 for n in told), "a token of the model is a byte"
        assert max(sampled) <= 20
        assert row["train/length_mean"] == pytest.approx(np.mean(sampled))
        assert row["train/trained_tokens"] == sum(sampled)
        for sample in samples:
            assert not sample.behavior_logprobs[sample.loss_mask == 0].any()
            assert sample.reference_logprobs is not None
