"""Whole runs on prompts with images, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from demo.vision import draw_rows
from learners.batches import read_batch
from tests.runs.conftest import cluster, finished
from tests.tiny_vision_model import save_tiny_vision_model


@pytest.fixture
def vision_config(tmp_path: Path, tiny_config: Callable[..., Path]) -> Callable[..., Path]:
    """``vision_config(name, **rollout)``: a run of two steps about drawn pictures."""
    model = save_tiny_vision_model(tmp_path / "model")
    rows = draw_rows(tmp_path / "pictures", 8, seed=1)

    def write(name: str, **rollout: Any) -> Path:
        overrides = {
            "model": {"path": str(model)},
            "data": {"train": [str(rows)], "held_out": [str(rows)]},
            "routes": {"knowledge_rule": {"rule": 1.0, "stop": 0.5}, "normal": {"normal": 1.0}},
            "rollout": {"max_prompt_tokens": 256, **rollout},
            "reference": {"kl_coefficient": 0.01},
            "evaluation": {"max_new_tokens": 4},
        }
        tree = json.loads(tiny_config(name, 2, overrides).read_text())
        del tree["routes"]["normal"], tree["principles"]["normal"]
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(tree))
        return path

    return write


def check_run(run: Path) -> None:
    """Two steps were taken on images, and their batches can be read without the files."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in steps if row.get("train/images")]
    assert len(trained) == 2, [sorted(row) for row in steps]
    for row in trained:
        assert row["train/image_tokens"] == 9 * row["train/images"]
    samples, _ = read_batch(run / "batches" / "step-2.safetensors")
    assert {len(sample.images) for sample in samples} <= {1, 2}
    for sample in samples:
        places = int((sample.prompt_tokens == 261).sum())  # <|image_pad|>
        assert places == sum(image.num_tokens for image in sample.images) > 0
    saved = load_file(run.parents[1] / "model" / "model.safetensors")  # under the hub's names
    before = {
        f"model.{n}"
        if n.startswith("visual")
        else n.replace("model.", "model.language_model.", 1): t
        for n, t in saved.items()
    }
    after = load_file(run / "checkpoints" / "step-2" / "model.safetensors")
    assert after.keys() == before.keys()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert not any("visual" in name for name in moved)


@pytest.mark.ray
def test_a_run_with_images_on_transformers_trains_and_replays(
    vision_config: Callable[..., Path],
) -> None:
    run = finished(vision_config("seeing"))
    check_run(run)
    done = cluster("replay", str(run), "--steps", "1..2")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.engine
def test_a_run_with_images_on_vllm_trains(vision_config: Callable[..., Path]) -> None:
    vllm = {"cpu_kv_cache_gib": 0.1, "max_num_seqs": 8}
    check_run(finished(vision_config("seeing-vllm", engine="vllm", vllm=vllm)))


@pytest.mark.process
def test_check_names_the_row_of_a_missing_picture(vision_config: Callable[..., Path]) -> None:
    config = vision_config("blind")
    rows = Path(json.loads(config.read_text())["data"]["train"][0])
    first = json.loads(rows.read_text().splitlines()[0])["images"][0]
    (rows.parent / first).unlink()
    done = cluster("check", str(config))
    assert done.returncode == 2
    assert f"{rows}:1: column images:" in done.stderr
    assert "there is no such file" in done.stderr
