"""Whole runs of ``python -m cluster`` in processes of their own: a tiny model, a tiny config, and
the command line. Every run has its own root below the test's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import save_tiny_model

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "demo" / "data" / "train.jsonl"
SECRETS = ("WANDB_API_KEY", "RAY_ADDRESS")
"""Of the caller's environment, and none of a test's business."""

Tree = dict[str, Any]

WHOLE_STEPS = 8
"""Steps of ``whole_run``."""

DETERMINISTIC: Tree = {
    "run": {"deterministic": True, "seed": 11},
    "rollout": {"group_size": 6, "max_new_tokens": 32},
    "reward": {"filter_zero_variance": True},
    "learner": {"epochs": 2},
    "schedule": {"groups_per_step": 3, "max_staleness": 0},
}
"""Two inner epochs: at bound 0 the first is on-policy, and its loss is 0 whatever the code does."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """``tiny_config(name=, steps=, overrides=)`` writes a YAML file and returns its path; the run's
    folder will be ``runs/<name>`` beside it."""

    def write(name: str = "tiny", steps: int = 2, overrides: Tree | None = None) -> Path:
        return write_config(tmp_path, tiny_model, name, steps, overrides or {})

    return write


def write_config(folder: Path, model: Path, name: str, steps: int, overrides: Tree) -> Path:
    """The config of a run that takes seconds, as a file in ``folder``."""
    rules = {
        "normal": "rewards.helpfulness:Normal",
        "rule": "rewards.exact:ExactAnswer",
        "stop": "rewards.format:StopWithinLimit",
    }
    tree: Tree = {
        "run": {"name": name, "root": str(folder / "runs"), "steps": steps},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": [str(_write_rows(folder))]},
        "principles": {principle: {"verifier": path} for principle, path in rules.items()},
        "routes": {
            "normal": {"normal": 1.0, "stop": 0.5},
            "knowledge_rule": {"rule": 1.0, "stop": 0.5},
        },
        "rollout": {
            "engine": "transformers",
            "group_size": 4,
            "max_prompt_tokens": 160,
            "max_new_tokens": 8,
        },
        "reward": {"filter_zero_variance": False},
        "learner": {"lr": 1e-3, "micro_batch_tokens": 512},
        "schedule": {"groups_per_step": 4, "max_staleness": 1},
        "checkpoint": {"every_steps": 1, "keep": 3},
        "monitor": {"wandb": "off"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(_merged(tree, overrides), indent=1))  # JSON is YAML
    return path


def run_environment() -> dict[str, str]:
    """What a driver in a test sees of our environment."""
    kept = {key: value for key, value in os.environ.items() if key not in SECRETS}
    return kept | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}


def train(config: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """``safeladder train``, to its end."""
    return cluster("train", str(config), *arguments, timeout=timeout)


def cluster(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """``python -m cluster`` with these words, to its end; what it says is in ``stdout`` and
    ``stderr``."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=REPOSITORY,
        env=run_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a deterministic run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return finished(write_config(folder, tiny_model, "whole", WHOLE_STEPS, DETERMINISTIC))


def finished(config: Path) -> Path:
    """Train to a good end; returns the run's folder."""
    done = train(config)
    assert done.returncode == 0, done.stdout + done.stderr
    return config.parent / "runs" / config.stem


def _write_rows(folder: Path) -> Path:
    """The rows of the project's training prompts that need no safety verifier."""
    rows = [line for line in DATA.read_text().splitlines() if json.loads(line)["route"] != "safety"]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def _merged(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    merged = dict(tree)
    for key, value in overrides.items():
        is_branch = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if is_branch else value
    return merged
