"""What the files of a run say, read without the code that wrote them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

CLOCKS = (
    "time/", "rollout/tokens_per_s", "train/trained_tokens_per_s",
    "learner/", "engines/", "verifier:", "reference/", "group/", "fleet/",
)  # fmt: skip
"""Metrics that measure time: the rest of a row is a pure function of the config."""


def metrics(run: Path) -> dict[int, dict[str, Any]]:
    """Step → its row in ``metrics.jsonl`` without what clocks say; its last row counts."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        row["train/step"]: {k: v for k, v in row.items() if not k.startswith(CLOCKS)}
        for row in rows
        if row["kind"] == "train"
    }


def batch(run: Path, step: int) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Arrays and sample ids of ``batches/step-N.safetensors``."""
    with safe_open(run / "batches" / f"step-{step}.safetensors", framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return arrays, json.loads(file.metadata()["sample_ids"])


def assert_same_batch(one: Path, other: Path, step: int) -> None:
    """Every array of a step's batch bit for bit, and its sample ids."""
    (arrays, ids), (expected, expected_ids) = batch(one, step), batch(other, step)
    assert ids == expected_ids, f"step {step}"
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], f"step {step}: {name}")


def trained_groups(run: Path) -> Counter[str]:
    """Group → number of batches on disk that hold it."""
    steps = [int(path.stem.removeprefix("step-")) for path in (run / "batches").glob("*")]
    found: Counter[str] = Counter()
    for step in steps:
        found.update({sample.rpartition("/")[0] for sample in batch(run, step)[1]})
    return found
