"""PPO's value head: packed as alone, trained beside the policy, kept by checkpoints, published by
nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from learners.packing import pack
from learners.policy_model import VALUE_HEAD, load_policy
from tests.learners.ranks import Job, make_config, make_order, make_tiny_model, run_jobs
from tests.learners.test_policy_model import random_samples, run

pytestmark = pytest.mark.engine

OBJECTIVE = {"profile": "ppo", "value": {"head_lr": 0.05}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a head of its own, so that values differ from token to token."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    torch.manual_seed(3)
    save_file({"weight": torch.randn(1, 32), "bias": torch.ones(1)}, folder / VALUE_HEAD)
    return folder


def load(folder: Path) -> Any:
    return load_policy(
        folder,
        dtype=torch.float32,
        temperature=1.0,
        train_last_layers=None,
        gradient_checkpointing=False,
        value_heads=1,
    )


def test_packed_values_are_those_of_each_answer_alone(model: Path) -> None:
    policy, samples = load(model), random_samples()
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    [rows] = pack(samples, ranks=1, budget=64)
    alone = {}
    for index, one in enumerate(samples):
        ids = torch.from_numpy(np.concatenate([one.prompt_tokens, one.tokens])).long()
        with torch.no_grad():
            states = plain(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
            values = policy.value_head(states)[:, 0]
        alone[index] = values[one.prompt_tokens.size - 1 : -1]
    assert len(rows) > 1
    for row in rows:
        found = run(policy, row)[1]
        expected = torch.cat([alone[p.sequence][torch.from_numpy(p.trained)] for p in row.pieces])
        assert torch.allclose(found, expected, atol=1e-5)
        assert expected.std() > 0.1


def test_a_model_without_a_head_gets_one_that_expects_nothing(tmp_path: Path) -> None:
    make_tiny_model(tmp_path)
    policy = load(tmp_path)
    [rows] = pack(random_samples(), ranks=1, budget=512)
    assert not run(policy, rows[0])[1].any()


async def train_and_save(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    reports = [await learner.train(make_order(step)) for step in (1, 2)]
    path = await learner.save_checkpoint(arguments["parent"], 2, 1)
    published = await learner.publish(2, 1)
    reports.append(await learner.train(make_order(3)))
    names = [tensor.name for tensor in published[0].tensors] if published else []
    return {"metrics": [dict(r.metrics) for r in reports], "path": path, "published": names}


async def third_step(learner: Any, _: dict[str, Any]) -> dict[str, float]:
    return dict((await learner.train(make_order(3))).metrics)


SPREADS = [(1, 0, 256), (1, 2, 40), (2, 2, 40), (2, 3, 40)]


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, int], Any]:
    found = {}
    for spread in SPREADS:
        ranks, stage, budget = spread
        root = tmp_path_factory.mktemp("run")
        config = make_config(
            model, root, ranks=ranks, zero_stage=stage, micro_batch_tokens=budget,
            epochs=2, objective=OBJECTIVE,
        )  # fmt: skip
        [seen] = run_jobs(ranks, [Job(config, train_and_save, {"parent": root / "checkpoints"})])
        found[spread] = seen | {"config": config}
    return found


@pytest.mark.parametrize("spread", SPREADS[1:], ids=str)
def test_ppo_does_not_depend_on_ranks_stage_or_packing(
    runs: dict[tuple[int, int, int], Any], spread: tuple[int, int, int]
) -> None:
    names = ("loss", "value_loss", "value_explained", "grad_norm", "clip_fraction", "entropy")
    for expected, found in zip(runs[SPREADS[0]]["metrics"], runs[spread]["metrics"], strict=True):
        for name in names:
            assert found[name] == pytest.approx(expected[name], abs=2e-5, rel=2e-4), name


def test_the_head_learns_and_is_not_published(runs: dict[tuple[int, int, int], Any]) -> None:
    for seen in runs.values():
        losses = [m["value_loss"] for m in seen["metrics"]]
        assert losses[-1] < losses[0] / 2
        assert seen["published"]
        assert not [name for name in seen["published"] if "value" in name]


@pytest.mark.parametrize("spread", [(1, 2, 40), (2, 3, 40)], ids=str)
def test_a_checkpoint_has_the_head_and_its_moments(
    runs: dict[tuple[int, int, int], Any], model: Path, spread: tuple[int, int, int]
) -> None:
    seen = runs[spread]
    head = load_file(seen["path"] / VALUE_HEAD)
    assert not torch.equal(head["weight"], load_file(model / VALUE_HEAD)["weight"])
    assert load_file(seen["path"] / "optimizer.safetensors")["value_head.weight.exp_avg"].any()
    job = Job(seen["config"], third_step, resume_from=seen["path"])
    [resumed] = run_jobs(spread[0], [job])
    timed = "trained_tokens_per_s"
    expected = seen["metrics"][2]
    assert {k: v for k, v in resumed.items() if k != timed} == pytest.approx(
        {k: v for k, v in expected.items() if k != timed}, rel=1e-6
    )


def test_in_half_precision_the_head_has_a_float32_master_and_resumes(
    model: Path, tmp_path: Path
) -> None:
    config = make_config(model, tmp_path, dtype="bfloat16", objective=OBJECTIVE)
    [seen] = run_jobs(1, [Job(config, train_and_save, {"parent": tmp_path / "checkpoints"})])
    assert load_file(seen["path"] / VALUE_HEAD)["weight"].dtype == torch.bfloat16
    state = load_file(seen["path"] / "optimizer.safetensors")
    assert state["value_head.weight.master"].dtype == torch.float32
    [resumed] = run_jobs(1, [Job(config, third_step, resume_from=seen["path"])])
    assert resumed["loss"] == seen["metrics"][2]["loss"]
    assert resumed["value_loss"] == seen["metrics"][2]["value_loss"]


async def nothing(learner: Any, _: dict[str, Any]) -> None: ...


def test_a_checkpoint_without_a_head_is_no_start_for_ppo(
    model: Path, tmp_path: Path, runs: dict[tuple[int, int, int], Any]
) -> None:
    path = runs[SPREADS[0]]["path"]
    kept = (path / VALUE_HEAD).rename(tmp_path / "kept")
    try:
        with pytest.raises(AssertionError, match=r"has no value_head\.safetensors"):
            run_jobs(1, [Job(runs[SPREADS[0]]["config"], nothing, resume_from=path)])
    finally:
        kept.rename(path / VALUE_HEAD)
