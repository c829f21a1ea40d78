"""Steps on images depend neither on ranks nor on ZeRO: the frozen tower is no part of a shard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from safeladder.config import Config
from safeladder.records import TrainGroup, TrainOrder
from tests.learners.ranks import Job, run_jobs
from tests.vision.test_learner import group_with_images
from vision.family import VisionFamily
from vision.sequences import model_class

pytestmark = pytest.mark.engine

SPREADS = {"plain": (1, 0), "optimizer and gradients": (2, 2), "everything": (2, 3)}
"""Ranks and ZeRO stage."""


def config_of(model: Path, root: Path, **learner: Any) -> Config:
    tree = {
        "run": {"name": "seeing", "root": str(root), "steps": 2},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": ["none.jsonl"]},
        "principles": {"p": {"verifier": "rewards.rules:Rule"}},
        "routes": {"any": {"p": 1.0}},
        "rollout": {"max_prompt_tokens": 80, "max_new_tokens": 16},
        "reference": {"kl_coefficient": 0},
        "learner": {"lr": 1e-2, "micro_batch_tokens": 96, **learner},
    }
    return Config.model_validate_json(json.dumps(tree))


def without_images(group: TrainGroup) -> TrainGroup:
    """Its twin with a prompt of text, so that only one rank has something to see."""
    key = group.key._replace(ordinal=1)
    tokens = np.array([5, 6, 7], np.int32)
    completions = tuple(replace(c, prompt_tokens=tokens) for c in group.payload.completions)
    prompt = replace(group.payload.prompt, images=())
    payload = replace(group.payload, key=key, prompt=prompt, completions=completions, images=())
    return replace(group, key=key, payload=payload)


async def two_steps(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    reports = [await learner.train(order) for order in arguments["orders"]]
    path = await learner.save_checkpoint(arguments["parent"], 2, 2)
    return {"metrics": [dict(report.metrics) for report in reports], "path": path}


def test_steps_on_images_depend_neither_on_ranks_nor_on_zero(
    model_path: Path, family: VisionFamily, tmp_path: Path
) -> None:
    payload, ordered = group_with_images(family)
    seeing = replace(ordered, payload=payload)
    groups = (seeing, without_images(seeing))
    orders = [TrainOrder(step=step, fence=1, groups=groups) for step in (1, 2)]
    found = {}
    for name, (ranks, stage) in SPREADS.items():
        config = config_of(model_path, tmp_path / name, ranks=ranks, zero_stage=stage)
        arguments = {"orders": orders, "parent": tmp_path / name / "checkpoints"}
        [found[name]] = run_jobs(ranks, [Job(config, two_steps, arguments)])
    plain = found.pop("plain")
    assert [step["images"] for step in plain["metrics"]] == [2, 2]
    weights = load_file(plain["path"] / "model.safetensors")
    base = dict(model_class(model_path).from_pretrained(model_path).named_parameters())
    assert weights.keys() == base.keys()
    for sharded in found.values():
        for ours, theirs in zip(plain["metrics"], sharded["metrics"], strict=True):
            for metric in ("images", "loss", "grad_norm"):
                assert theirs[metric] == pytest.approx(ours[metric], rel=1e-4, abs=1e-5), metric
        other = load_file(sharded["path"] / "model.safetensors")
        assert other.keys() == weights.keys()
        for tensor, weight in weights.items():
            np.testing.assert_allclose(other[tensor], weight, atol=2e-4, err_msg=tensor)
    for tensor, before in base.items():
        is_frozen = any(f".{module}." in tensor for module in family.frozen)
        same = torch.equal(torch.from_numpy(weights[tensor]), before.detach())
        assert same == is_frozen, tensor
    # A folder that was written under ZeRO-3 is a whole model, tower and all.
    model_class(model_path).from_pretrained(found["everything"]["path"])
