"""Stages on real DeepSpeed ranks: what they compute must not depend on how it is spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from learners.checkpoints import read_manifest
from learners.policy_model import VALUE_HEAD
from learners.preference import PreferenceRow
from learners.value_model import ValueRow
from safeladder.config import Config
from tests.learners.ranks import VOCABULARY, Job, make_config, make_tiny_model, run_jobs

pytestmark = pytest.mark.engine

SPREADS = [(1, 0), (2, 2), (2, 3)]
"""Ranks and ZeRO stage."""
SECTIONS: dict[str, dict[str, Any]] = {
    "preference": {},
    "value_model": {"principles": ["safety", "rule"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


def stage_config(
    model: Path, root: Path, stage: str, zero_stage: int, ranks: int, **learner: Any
) -> Config:
    base = make_config(model, root, zero_stage=zero_stage, ranks=ranks, **learner)
    shared = {"data": ["none.jsonl"], "lr": 1e-2, "batch_size": 4, "validation_share": 0.2}
    tree = base.model_dump(mode="json")
    tree["run"]["steps"] = 0
    return Config.model_validate(tree | {"stage": stage, stage: shared | SECTIONS[stage]})


def preference_rows() -> list[PreferenceRow]:
    random = np.random.default_rng(5)

    def tokens(low: int, high: int) -> Any:
        return random.integers(1, VOCABULARY, random.integers(low, high)).astype(np.int32)

    return [
        PreferenceRow(prompt_tokens=tokens(3, 6), chosen=tokens(2, 9), rejected=tokens(2, 9))
        for _ in range(12)
    ]


def value_rows() -> list[ValueRow]:
    random = np.random.default_rng(6)
    return [
        ValueRow(
            prompt_tokens=np.array([3, 4, 5 + i // 4], np.int32),
            tokens=random.integers(1, VOCABULARY, 1 + i % 5).astype(np.int32),
            returns=random.random(2).astype(np.float32),
            known=np.array([1.0, i % 2], np.float32),
        )
        for i in range(12)
    ]


ROWS: dict[str, Any] = {"preference": preference_rows, "value_model": value_rows}


async def three_steps(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    before = await learner.begin_stage(ROWS[arguments["stage"]](), 1)
    reports = [await learner.stage_step(step, 1) for step in (1, 2, 3)]
    after = await learner.measure_stage()
    saved = await learner.save_checkpoint(learner._config.run.directory / "checkpoints", 3, 1)
    return {
        "metrics": [{**r.metrics, "trained_tokens_per_s": 0.0} for r in reports],
        "before": dict(before),
        "after": dict(after),
        "saved": saved,
    }


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_stage_does_not_depend_on_ranks_zero_stage_or_packing(
    model: Path, tmp_path: Path, stage: str
) -> None:
    found = {}
    for ranks, zero_stage in SPREADS:
        config = stage_config(model, tmp_path / f"{ranks}-{zero_stage}", stage, zero_stage, ranks)
        ((result),) = run_jobs(ranks, [Job(config, three_steps, {"stage": stage})])
        found[ranks, zero_stage] = result
    plain = found[1, 0]
    assert plain["metrics"][0]["grad_norm"] > 1e-3
    for spread, result in found.items():
        for name in ("before", "after"):
            assert result[name] == pytest.approx(plain[name], abs=1e-4), (spread, name)
        for metrics, expected in zip(result["metrics"], plain["metrics"], strict=True):
            assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-4), spread
        weights = load_file(result["saved"] / "model.safetensors")
        for name, weight in load_file(plain["saved"] / "model.safetensors").items():
            np.testing.assert_allclose(weights[name], weight, atol=2e-3, err_msg=name)


async def on_from_a_checkpoint(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    await learner.begin_stage(ROWS[arguments["stage"]](), 2)
    return dict((await learner.stage_step(4, 2)).metrics)


async def four_steps(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    await learner.begin_stage(ROWS[arguments["stage"]](), 1)
    reports = [await learner.stage_step(step, 1) for step in (1, 2, 3, 4)]
    return dict(reports[-1].metrics)


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_stage_goes_on_from_its_checkpoint_bit_for_bit(
    model: Path, tmp_path: Path, stage: str
) -> None:
    config = stage_config(model, tmp_path, stage, 2, 1)
    other = stage_config(model, tmp_path / "whole", stage, 2, 1)
    arguments = {"stage": stage}
    (first,) = run_jobs(1, [Job(config, three_steps, arguments)])
    again, whole = run_jobs(
        1,
        [
            Job(config, on_from_a_checkpoint, arguments, resume_from=first["saved"]),
            Job(other, four_steps, arguments),
        ],
    )
    clock = "trained_tokens_per_s"
    assert {**again, clock: 0} == {**whole, clock: 0}
    if stage == "preference":  # what the reference said reaches ranks that never read it
        spread = stage_config(model, tmp_path, stage, 3, 2)
        job = Job(spread, on_from_a_checkpoint, arguments, resume_from=first["saved"])
        (found,) = run_jobs(2, [job])
        assert {**found, clock: 0} == pytest.approx({**whole, clock: 0}, rel=1e-3, abs=1e-4)
    if stage == "value_model":
        head = load_file(first["saved"] / VALUE_HEAD)
        assert (head["weight"].shape, head["bias"].shape) == ((2, 32), (2,))
        assert np.abs(head["weight"]).max() > 0
        assert VALUE_HEAD in read_manifest(first["saved"]).files
