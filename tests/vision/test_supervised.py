"""Supervised rows with images: rendered, packed and priced like prompts of a rollout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.stage_rows import digest_of
from cluster.supervised import supervised_rows
from learners.packing import pack
from learners.policy_model import load_policy
from safeladder.config import Config
from safeladder.errors import DataError
from tests.cluster.checked_setup import JUDGE
from tests.tiny_vision_model import noise
from tests.vision.conftest import plain_logprobs
from vision.family import VisionFamily


def config_of(folder: Path, model: Path, *rows: dict[str, Any]) -> Config:
    path = folder / "sft.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    tree = {
        "run": {"name": "sft", "steps": 1, "root": str(folder)},
        "model": {"path": str(model), "dtype": "float32"},
        "stage": "sft",
        "data": {"train": []},
        "principles": {"exact": {"verifier": JUDGE}},
        "routes": {"task": {"exact": 1.0}},
        "sft": {"data": [str(path)], "epochs": 1, "batch_size": 2},
        "learner": {"micro_batch_tokens": 1024},
    }
    return Config.model_validate_json(json.dumps(tree))


def test_demonstrations_with_images_are_priced_as_the_plain_model_prices_them(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    for seed in (0, 1):
        (tmp_path / f"{seed}.png").write_bytes(noise(seed, [(130, 90), (60, 200)][seed]))
    config = config_of(
        tmp_path, model_path,
        {"prompt": "<image> or <image>?", "images": ["0.png", "1.png"], "response": "second"},
        {"prompt": "What?", "images": ["1.png"], "response": "noise"},
        {"prompt": "And now?", "response": "text"},
    )  # fmt: skip
    rows = supervised_rows(config)
    assert [len(row.images) for row in rows] == [2, 1, 0]
    assert rows[0].images[1] is rows[1].images[0]
    assert rows[0].images[0].file == b""
    policy = load_policy(
        model_path, dtype=torch.float32, temperature=1.0, train_last_layers=None,
        gradient_checkpointing=False,
    )  # fmt: skip
    (row,) = pack(rows, ranks=1, budget=1024)[0]
    found = policy(**policy.inputs(row, "cpu")).detach()
    plain = [
        plain_logprobs(family, model, one.prompt_tokens, one.tokens, one.images)
        for one in (rows[piece.sequence] for piece in row.pieces)
    ]
    torch.testing.assert_close(found, torch.cat(plain), atol=2e-5, rtol=1e-5)
    assert digest_of(config, rows) != digest_of(config, [rows[1], rows[0], rows[2]])


def test_a_demonstration_whose_image_is_missing_is_named(model_path: Path, tmp_path: Path) -> None:
    config = config_of(
        tmp_path, model_path, {"prompt": "a", "response": "b"},
        {"prompt": "What?", "images": ["none.png"], "response": "?"},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"sft\.jsonl:2: column images: .*there is no such file"):
        supervised_rows(config)
