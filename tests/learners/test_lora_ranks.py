"""Adapters on real DeepSpeed ranks: spread, published merged, saved with what a resume needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from learners.lora import ADAPTER
from tests.learners.ranks import Job, make_config, make_order, make_tiny_model, run_jobs

pytestmark = pytest.mark.engine

SPREADS = [(1, 0), (2, 2), (2, 3)]
"""Ranks and ZeRO stage."""
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


async def steps(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    reports = [await learner.train(make_order(step)) for step in arguments["steps"]]
    published = await learner.publish(arguments["steps"][-1], 1)
    root = learner._config.run.directory / "checkpoints"
    saved = await learner.save_checkpoint(root, arguments["steps"][-1], 1)
    state = await learner._on_thread(lambda: dict(learner._engine.optimizer_state()))
    return {
        "metrics": [{**r.metrics, "trained_tokens_per_s": 0.0} for r in reports],
        "tensors": {} if published is None else {
            spec.name: np.frombuffer(raw, np.float32 if spec.dtype == "float32" else np.uint16)
            for chunk in published[1].chunks
            for spec in published[0].tensors
            if (raw := chunk.get(spec.name)) is not None
        },
        "saved": saved,
        "states": list(state),
    }  # fmt: skip


def test_training_adapters_does_not_depend_on_ranks_or_zero_stage(
    model: Path, tmp_path: Path
) -> None:
    found = {}
    for ranks, zero_stage in SPREADS:
        config = make_config(
            model, tmp_path / f"{ranks}-{zero_stage}", ranks=ranks, zero_stage=zero_stage, lora=LORA
        )
        (found[ranks, zero_stage],) = run_jobs(ranks, [Job(config, steps, {"steps": (1, 2, 3)})])
    plain = found[1, 0]
    assert plain["metrics"][0]["grad_norm"] > 1e-4
    assert all(".lora_" in name for name in plain["states"])
    for spread, result in found.items():
        for metrics, expected in zip(result["metrics"], plain["metrics"], strict=True):
            for name in ("loss", "grad_norm", "entropy", "kl_reference"):
                assert metrics[name] == pytest.approx(expected[name], abs=1e-4), (spread, name)
        weights = load_file(result["saved"] / "model.safetensors")
        for name, weight in load_file(plain["saved"] / "model.safetensors").items():
            np.testing.assert_allclose(weights[name], weight, atol=2e-3, err_msg=name)


class Late:
    """A collective operation that comes no sooner than it is waited for."""

    def __init__(self, operation: Callable[[], Any]) -> None:
        self._operation = operation

    def wait(self) -> None:
        self._operation()


async def gather_late(learner: Any, arguments: dict[str, Any]) -> list[str]:
    """Names of merged weights that differ from those of the base, though B is zero, where only
    what is waited for arrives."""
    import deepspeed

    at_once = deepspeed.comm.all_gather_into_tensor

    def late(*tensors: Any, async_op: bool, **others: Any) -> Any:
        operation = partial(at_once, *tensors, async_op=False, **others)
        return Late(operation) if async_op else operation()

    deepspeed.comm.all_gather_into_tensor = late  # of this process, which ends with the job
    weights = await learner._on_thread(lambda: dict(learner._engine.weights(only_trained=True)))
    base = load_file(arguments["model"] / "model.safetensors")
    merged = {name: weight.numpy() for name, weight in weights.items() if weight is not None}
    return [name for name in merged if not np.array_equal(merged[name], base[name])]


def test_a_weight_is_merged_when_all_its_parts_have_come(model: Path, tmp_path: Path) -> None:
    """Gloo's operations end in any order: the last one says nothing of the others."""
    config = make_config(model, tmp_path, ranks=2, zero_stage=3, lora=LORA)
    assert run_jobs(2, [Job(config, gather_late, {"model": model})]) == [[]]


def test_what_is_published_and_saved_is_the_merged_model_beside_the_adapters(
    model: Path, tmp_path: Path
) -> None:
    config = make_config(model, tmp_path, zero_stage=2, lora=LORA)
    (result,) = run_jobs(1, [Job(config, steps, {"steps": (1, 2)})])
    base = load_file(model / "model.safetensors")
    saved = load_file(result["saved"] / "model.safetensors")
    assert saved.keys() == base.keys()
    changed = {name for name in base if not np.array_equal(saved[name], base[name])}
    assert changed == set(result["tensors"]), "what has no adapter is not published"
    assert len(changed) == 2 * 7, "the last two of three layers"
    for name, tensor in result["tensors"].items():
        np.testing.assert_array_equal(tensor, saved[name].reshape(-1))
    adapters = load_file(result["saved"] / ADAPTER)
    name = "model.layers.2.mlp.up_proj"
    low, high = (adapters[f"{name}.lora_{x}.default.weight"] for x in "AB")
    np.testing.assert_allclose(
        saved[f"{name}.weight"], base[f"{name}.weight"] + 2.0 * high @ low, atol=1e-6
    )
    AutoModelForCausalLM.from_pretrained(result["saved"], dtype=torch.float32)


def test_adapters_go_on_from_a_checkpoint_bit_for_bit(model: Path, tmp_path: Path) -> None:
    first, whole = (
        make_config(model, tmp_path / name, zero_stage=2, lora=LORA) for name in ("first", "whole")
    )
    (half,) = run_jobs(1, [Job(first, steps, {"steps": (1, 2)})])
    again, once = run_jobs(
        1,
        [
            Job(first, steps, {"steps": (3, 4)}, resume_from=half["saved"]),
            Job(whole, steps, {"steps": (1, 2, 3, 4)}),
        ],
    )
    assert again["metrics"] == once["metrics"][2:]
    for file in ("model.safetensors", ADAPTER, "optimizer.safetensors"):
        expected = load_file(once["saved"] / file)
        for name, tensor in load_file(again["saved"] / file).items():
            np.testing.assert_array_equal(tensor, expected[name], name)


def test_half_precision_tells_how_far_the_merge_was_rounded(model: Path, tmp_path: Path) -> None:
    config = make_config(model, tmp_path, zero_stage=2, lora=LORA, dtype="bfloat16")
    (result,) = run_jobs(1, [Job(config, steps, {"steps": (1, 2)})])
    assert "lora_rounding" in result["metrics"][-1]
    assert 0 <= result["metrics"][-1]["lora_rounding"] < 0.01
