"""RL with adapters, through the command line: engines answer with the merged policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .conftest import DETERMINISTIC, cluster, finished
from .readings import metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(600)]


def test_engines_sample_from_what_the_learner_prices(
    tiny_config: Callable[..., Path], tiny_model: Path
) -> None:
    adapters = {"lora": {"rank": 4, "alpha": 8}, "lr": 1e-2, "epochs": 1}
    run = finished(tiny_config("lora", 3, DETERMINISTIC | {"learner": adapters}))
    rows = metrics(run)
    assert sorted(rows) == [1, 2, 3]
    for step, row in rows.items():  # at bound 0 the engine's log-probs are the learner's
        assert abs(row["train/kl_behavior"]) < 1e-5, step
        assert row["train/grad_norm"] > 0
    saved = load_file(run / "checkpoints" / "step-3" / "model.safetensors")
    base = load_file(tiny_model / "model.safetensors")
    changed = {name for name in base if not np.array_equal(saved[name], base[name])}
    assert changed == {n for n in base if n.endswith("_proj.weight")}
    again = cluster("replay", str(run), "--steps", "1..3", "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout)["is_exact"] is True
