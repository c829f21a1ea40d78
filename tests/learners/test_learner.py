"""The learner on real DeepSpeed ranks: what it computes must not depend on how it is spread."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest

from cluster.roles import build_learner
from learners.checkpoints import newest_valid, take_over, verify
from learners.learner import Learner
from safeladder import tensors
from safeladder.errors import DivergedError, FencedError
from safeladder.records import StepPayloadsLost
from tests.learners.ranks import (
    Job,
    MemoryStore,
    make_config,
    make_order,
    make_tiny_model,
    run_jobs,
)

pytestmark = pytest.mark.engine


class Spread(NamedTuple):
    """How one and the same training is spread over processes."""

    ranks: int
    zero_stage: int
    micro_batch_tokens: int
    epochs: int


PLAIN = {epochs: Spread(1, 0, 256, epochs) for epochs in (1, 2)}
SPREADS = [
    Spread(1, 2, 40, 1),
    Spread(1, 2, 40, 2),
    Spread(2, 0, 40, 1),
    Spread(2, 2, 256, 1),
    Spread(2, 3, 40, 1),
    Spread(2, 3, 40, 2),
]
INDEPENDENT = (
    "loss", "clip_fraction", "drift", "kl_behavior", "kl_reference", "entropy", "ratio_max",
    "grad_norm", "staleness_mean", "staleness_max", "reward_mean", "trained_tokens",
    "kl_behavior_k1", "effective_sample_share", "weight_mean", "weight_max",
    "weight_clipped_share", "staleness_share_0", "staleness_share_1",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


async def three_steps(learner: Any, _: dict[str, Any]) -> dict[str, Any]:
    reports = [await learner.train(make_order(1))]
    state = await learner._on_thread(lambda: dict(learner._engine.optimizer_state()))
    reports += [await learner.train(make_order(step)) for step in (2, 3)]
    return {
        "metrics": [dict(r.metrics) for r in reports],
        "gradient": {
            name: tensor.numpy() / (1 - 0.9)
            for name, tensor in state.items()
            if tensor is not None and name.endswith("exp_avg")
        },
    }


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Spread, Any]:
    results: dict[Spread, Any] = {}
    for ranks in (1, 2):
        own = [s for s in (*PLAIN.values(), *SPREADS) if s.ranks == ranks]
        jobs = [
            Job(make_config(model, tmp_path_factory.mktemp("run"), **s._asdict()), three_steps)
            for s in own
        ]
        results |= dict(zip(own, run_jobs(ranks, jobs), strict=True))
    return results


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_losses_and_telemetry_do_not_depend_on_ranks_stage_or_split(
    runs: dict[Spread, Any], spread: Spread
) -> None:
    plain = runs[PLAIN[spread.epochs]]["metrics"]
    for expected, found in zip(plain, runs[spread]["metrics"], strict=True):
        for name in INDEPENDENT:
            assert found[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-5), name


@pytest.mark.parametrize("spread", SPREADS, ids=str)
def test_the_gradient_does_not_depend_on_ranks_stage_or_split(
    runs: dict[Spread, Any], spread: Spread
) -> None:
    plain, found = runs[PLAIN[spread.epochs]]["gradient"], runs[spread]["gradient"]
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert np.allclose(found[name], gradient, atol=1e-5), name


def test_the_ranks_meet_at_the_address_that_the_cluster_knows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.remote.node_address", lambda: "10.0.0.7")
    learner = build_learner(store=MemoryStore(), rank=0, config=make_config(model, tmp_path))
    host, port = asyncio.run(learner.rendezvous())
    assert (host, port > 0) == ("10.0.0.7", True)


class ForgetfulStore(MemoryStore):
    """A store that has lost one payload."""

    def __init__(self, lost: Any) -> None:
        self._lost = lost

    async def get(self, handle: Any) -> Any:
        if handle is self._lost:
            raise KeyError("payload is gone")
        return handle


async def lose_then_train(learner: Any, _: dict[str, Any]) -> dict[str, Any]:
    order = make_order(1)
    if learner._rank == 1:
        learner._store = ForgetfulStore(order.groups[2].payload)
    lost = await learner.train(order)
    is_written = (learner._config.run.directory / "batches").exists()
    learner._store = MemoryStore()
    report = await learner.train(order)
    return {"lost": lost, "is_written": is_written, "step": report.step}


def test_a_payload_that_one_rank_cannot_read_is_told_by_all_and_the_step_ordered_anew(
    model: Path, tmp_path: Path
) -> None:
    [seen] = run_jobs(2, [Job(make_config(model, tmp_path, ranks=2), lose_then_train)])
    key = make_order(1).groups[2].key
    expected = StepPayloadsLost(step=1, groups=((key, 1),))
    assert seen == {"lost": expected, "is_written": False, "step": 1}


async def save_and_go_on(learner: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    for step in (1, 2):
        await learner.train(make_order(step))
    path = await learner.save_checkpoint(arguments["parent"], 2, 1, {"watermark": "7"})
    published = await learner.publish(2, 1)
    overlapping = asyncio.ensure_future(learner.publish(2, 1))
    await asyncio.sleep(0)
    results = await steps_three_and_four(learner, {})
    again = await overlapping
    return {"path": path, "published": published, "while training": again, **results}


async def steps_three_and_four(learner: Any, _: dict[str, Any]) -> dict[str, Any]:
    reports = [await learner.train(make_order(step)) for step in (3, 4)]
    published = await learner.publish(4, 1)
    return {
        "losses": [(r.metrics["loss"], r.metrics["grad_norm"]) for r in reports],
        "digest": published[0].digest if published else None,
    }


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_continues_bit_for_bit_on_one_rank(
    model: Path, tmp_path: Path, stage: int
) -> None:
    config = make_config(model, tmp_path, zero_stage=stage)
    parent = tmp_path / "checkpoints"
    [whole] = run_jobs(1, [Job(config, save_and_go_on, {"parent": parent})])
    path, _, skipped = newest_valid(parent)
    assert (path, skipped) == (whole["path"], [])
    [resumed] = run_jobs(1, [Job(config, steps_three_and_four, resume_from=path)])
    assert resumed == {key: whole[key] for key in ("losses", "digest")}


@pytest.fixture(scope="module")
def zero_three(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("zero3")
    config = make_config(model, root, ranks=2, zero_stage=3)
    [result] = run_jobs(2, [Job(config, save_and_go_on, {"parent": root / "checkpoints"})])
    return {"root": root, **result}


def test_what_zero_three_publishes_is_its_state_dict(zero_three: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    manifest, payload = zero_three["published"]
    raw = {name: array for chunk in payload.chunks for name, array in chunk.items()}
    tensors.verify(manifest, raw)
    weights = AutoModelForCausalLM.from_pretrained(zero_three["path"]).state_dict()
    for spec in manifest.tensors:
        found = torch.frombuffer(bytearray(raw[spec.name]), dtype=torch.float32)
        assert torch.equal(found.view(spec.shape), weights[spec.name]), spec.name
    names = {spec.name for spec in manifest.tensors}
    assert names == {n for n in weights if n.startswith(("model.layers.1", "model.layers.2"))} | {
        "model.norm.weight"
    }


def test_a_version_that_leaves_while_the_next_step_trains_is_not_torn(
    zero_three: dict[str, Any],
) -> None:
    manifest, payload = zero_three["while training"]
    tensors.verify(manifest, {n: raw for chunk in payload.chunks for n, raw in chunk.items()})
    assert manifest.digest == zero_three["published"][0].digest
    assert manifest.digest != zero_three["digest"]


def test_transformers_load_the_checkpoint_with_its_tokenizer(
    zero_three: dict[str, Any], model: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert verify(zero_three["path"]).extra == {"watermark": "7"}
    trained = AutoModelForCausalLM.from_pretrained(zero_three["path"])
    base = AutoModelForCausalLM.from_pretrained(model)
    frozen = "model.layers.0.mlp.up_proj.weight"
    moved = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(trained.state_dict()[frozen], base.state_dict()[frozen])
    assert not torch.equal(trained.state_dict()[moved], base.state_dict()[moved])
    tokenizer = AutoTokenizer.from_pretrained(zero_three["path"])
    assert tokenizer.chat_template
    assert tokenizer("w3 w5").input_ids == [3, 5]


def test_a_checkpoint_of_two_sharded_ranks_goes_on_on_one_plain_rank(
    zero_three: dict[str, Any], model: Path
) -> None:
    config = make_config(model, zero_three["root"] / "one", zero_stage=0)
    [resumed] = run_jobs(1, [Job(config, steps_three_and_four, resume_from=zero_three["path"])])
    assert np.allclose(resumed["losses"], zero_three["losses"], atol=1e-5)


async def one_group_on_two_ranks(learner: Any, _: dict[str, Any]) -> float:
    return (await learner.train(make_order(1, groups=1))).metrics["loss"]


async def bfloat16_steps(learner: Any, arguments: dict[str, Any]) -> list[float]:
    losses = [(await learner.train(make_order(step))).metrics["loss"] for step in (1, 2)]
    await learner.save_checkpoint(arguments["parent"], 2, 1)
    return losses


def test_a_rank_without_work_keeps_step_and_bfloat16_keeps_fp32_masters(
    model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    two = [
        Job(make_config(model, tmp_path / "a", ranks=2, zero_stage=3), one_group_on_two_ranks),
        Job(
            make_config(model, tmp_path / "b", ranks=2, zero_stage=3, dtype="bfloat16"),
            bfloat16_steps,
            {"parent": tmp_path},
        ),
    ]
    found, losses = run_jobs(2, two)
    one = Job(make_config(model, tmp_path / "c"), one_group_on_two_ranks)
    assert found == pytest.approx(run_jobs(1, [one])[0], abs=1e-5)
    assert np.isfinite(losses).all()
    state = load_file(tmp_path / "step-2" / "optimizer.safetensors")
    weights = load_file(tmp_path / "step-2" / "model.safetensors")
    master = state["model.norm.weight.master"]
    assert str(weights["model.norm.weight"].dtype) == "torch.bfloat16"
    assert (master.bfloat16() == weights["model.norm.weight"]).all()
    assert (master != weights["model.norm.weight"].float()).any()


async def supervised_rung(learner: Any, _: dict[str, Any]) -> dict[str, Any]:
    from learners.supervised import SftRow
    from safeladder.config import SftConfig

    rows = [
        SftRow(
            prompt_tokens=np.array([1, i], np.int32),
            tokens=np.array([5, 6, 7, 0][: i % 4 + 1], np.int32),
        )
        for i in range(2, 18)
    ]
    sft = SftConfig(data=(Path("rows.jsonl"),), epochs=6, lr=3e-2, batch_size=5)
    pings = 0
    training = asyncio.create_task(learner.sft(rows, sft))
    while not training.done():
        await asyncio.sleep(0)
        pings += 1
    state = await learner._on_thread(lambda: dict(learner._engine.optimizer_state()))
    return {
        "metrics": await training,
        "pings": pings,
        "moment": max(float(t.abs().max()) for t in state.values() if t is not None),
        "num_updates": learner._engine.num_updates,
        "version": (await learner.publish(0, 1))[0].version,
    }


async def guards(learner: Any, _: dict[str, Any]) -> dict[str, Any]:
    folder = learner._config.run.directory
    first = await learner.train(make_order(1, fence=3))
    again = await learner.train(make_order(1, fence=3))
    refused = {}
    for name, order in {
        "gap": make_order(7, fence=3),
        "zombie": make_order(2, fence=2),
        "nan": make_order(2, fence=3),
        "stale": make_order(2, fence=3),
    }.items():
        for group in order.groups:
            for completion in group.payload.completions:
                if name == "nan":
                    completion.behavior_logprobs[:] = np.nan
                if name == "stale":
                    completion.token_versions[:] = -3
        try:
            await learner.train(order)
        except (ValueError, FencedError, DivergedError) as error:
            refused[name] = f"{type(error).__name__}: {error}"
    (folder / "batches" / "step-2.safetensors").unlink()  # of the step that diverged
    take_over(folder / "checkpoints", 4)
    try:
        await learner.train(make_order(2, fence=3))
    except FencedError as error:
        refused["replaced"] = str(error)
    batches = sorted(path.name for path in (folder / "batches").iterdir())
    return {"batches": batches, "repeated": again is first, "refused": refused}


@pytest.fixture(scope="module")
def single_rank(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("single")
    config = make_config(model, root)
    rung, guarded = run_jobs(1, [Job(config, supervised_rung), Job(config, guards)])
    return {"root": root, "rung": rung, "guards": guarded}


def test_the_supervised_rung_learns_and_leaves_a_fresh_optimizer(
    single_rank: dict[str, Any],
) -> None:
    rung = single_rank["rung"]
    assert rung["metrics"]["loss"] < 0.8 * rung["metrics"]["loss_first"]
    assert rung["metrics"]["updates"] == 6 * 4
    assert (rung["moment"], rung["num_updates"], rung["version"]) == (0, 0, 0)


def test_the_event_loop_answers_while_torch_works(single_rank: dict[str, Any]) -> None:
    assert single_rank["rung"]["pings"] > 100


def test_a_repeated_order_is_answered_once_and_wrong_orders_are_refused(
    single_rank: dict[str, Any],
) -> None:
    found = single_rank["guards"]
    assert found["repeated"]
    assert found["refused"]["gap"].startswith("ValueError: step 7 was ordered after step 1")
    assert found["refused"]["zombie"].startswith("FencedError")
    assert "belongs to a driver with fence 4" in found["refused"]["replaced"]
    assert found["batches"] == ["step-1.safetensors"], "the batch of a replaced driver's step"
    assert "max_staleness" in found["refused"]["stale"]
    assert found["refused"]["nan"].startswith("DivergedError: the loss is nan")


def test_a_step_that_was_taken_is_not_reported_for_other_groups(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(1, 2, make_config(model, tmp_path), MemoryStore())
    learner._engine = Mock(reduce=lambda values, how: dict(values))
    monkeypatch.setattr("learners.learner.update_policy", lambda *_: {"trained_tokens": 1.0})
    order = make_order(1)
    first = asyncio.run(learner.train(order))
    assert asyncio.run(learner.train(order)) is first
    again = tuple(replace(group, attempt=2) for group in order.groups)
    for groups in (make_order(2).groups, again):
        with pytest.raises(ValueError, match="step 1 was taken with other groups"):
            asyncio.run(learner.train(replace(order, groups=groups)))


def test_every_step_leaves_its_batch_in_the_run_directory(single_rank: dict[str, Any]) -> None:
    from learners.batches import read_batch

    samples, metadata = read_batch(single_rank["root"] / "tiny" / "batches" / "step-1.safetensors")
    assert len(samples) == 12
    assert metadata["step"] == "1"
