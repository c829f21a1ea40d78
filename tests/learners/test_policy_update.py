"""A step of every objective against a plain loop, on an engine that is a table of logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.packing import PackedRow
from learners.policy_update import update_policy
from safeladder.config import Config
from safeladder.records import GroupKey, TrainingSample
from tests.learners.bare_config import bare_config

VOCABULARY = 11
VERSION = 5
LR = 0.5
EPSILON = 0.2


class TableEngine:
    """The engine's port on a policy that gives every token the same log-prob everywhere."""

    rank, world_size, device = 0, 1, "cpu"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.logits = torch.randn(VOCABULARY, generator=generator).requires_grad_()
        self.forwards = 0

    def logprobs(self, row: PackedRow) -> Tensor:
        self.forwards += 1
        return self.logits.log_softmax(-1)[torch.from_numpy(row.targets).long()]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        assert self.logits.grad is not None
        norm = float(self.logits.grad.norm())
        with torch.no_grad():
            self.logits -= lr * self.logits.grad
        self.logits.grad = None
        return norm

    def reduce(self, values: Mapping[str, float], how: str) -> dict[str, float]:
        return dict(values)


def make_config(epochs: int = 1, **objective: Any) -> Config:
    chosen = {"drift_coefficient": 0.0, "group_weight": "equal", **objective}
    learner = {"lr": LR, "epochs": epochs, "objective": chosen}
    return bare_config(learner, schedule={"max_staleness": 2})


def make_samples() -> list[TrainingSample]:
    """Two groups; answers of several versions, some within one answer, log-probs off by a lot."""
    random = np.random.default_rng(4)
    samples = []
    for index in range(6):
        length = int(random.integers(2, 7))
        versions = np.sort(random.integers(VERSION - 2, VERSION + 1, length))
        samples.append(
            TrainingSample(
                sample_id=f"0/{index}",
                group=GroupKey(0, index // 3),
                prompt_tokens=np.array([1, 2, index // 3], np.int32),
                tokens=random.integers(0, VOCABULARY, length).astype(np.int32),
                behavior_logprobs=(-2.4 + 0.7 * random.standard_normal(length)).astype(np.float32),
                loss_mask=np.array([1.0] * (length - 1) + [float(index % 2)], np.float32),
                token_versions=versions.astype(np.int32),
                reference_logprobs=None,
                reward=float(random.integers(0, 3)),
                finish_reason="stop",
            )
        )
    return samples


def plain_step(samples: list[TrainingSample], config: Config) -> Tensor:
    """The same update with nothing but a loop over tokens; the logits after it."""
    objective, rule = config.learner.objective, config.learner.objective.off_policy
    low, high = objective.ratio_bounds
    logits = TableEngine().logits.detach().clone()
    start = logits.log_softmax(-1)
    total = sum(int(s.loss_mask.sum()) for s in samples)
    for epoch in range(config.learner.epochs):
        logits.requires_grad_()
        policy = logits.log_softmax(-1)
        loss = torch.zeros(())
        for s in samples:
            siblings = [o.reward for o in samples if o.group == s.group]
            advantage = s.reward - sum(siblings) / len(siblings)
            places = [t for t in range(s.tokens.size) if s.loss_mask[t]]
            is_cpg = objective.policy_loss == "cpg"
            base = (policy if is_cpg else start).detach()
            ratios = []
            for t in places:
                is_old = s.token_versions[t] < VERSION
                corrects = is_old or rule.tokens == "all" or (epoch > 0 and is_cpg)
                gap = float(base[s.tokens[t]]) - float(s.behavior_logprobs[t])
                ratios.append(math.exp(gap) if corrects else 1.0)
            product = math.prod(ratios)
            for t, own in zip(places, ratios, strict=True):
                unit = {
                    "token": own, "sequence": product, "geometric": product ** (1 / len(ratios)),
                }[rule.level]  # fmt: skip
                weight = {
                    "none": 1.0,
                    "clip": min(max(unit, low), high),
                    "truncate": min(unit, high),
                    "mask": own if low <= unit <= high else 0.0,
                }[objective.correction]
                behavior = torch.tensor(s.behavior_logprobs[t])
                anchor = start[s.tokens[t]] if rule.anchor == "proximal" else behavior
                ratio = (policy[s.tokens[t]] - anchor.detach()).exp()
                bounded = ratio.clamp(1 - EPSILON, 1 + EPSILON)
                if is_cpg:
                    ratio, bounded = ratio.log(), bounded.log()
                gain = torch.minimum(ratio * advantage, bounded * advantage)
                loss = loss - weight * gain / total
        [slope] = torch.autograd.grad(loss, logits)
        logits = (logits - LR * slope).detach()
    return logits


OBJECTIVES: dict[str, dict[str, Any]] = {
    "cpgd": {},
    "cpg, uncorrected": {"off_policy": {"correction": "none"}},
    "cpg with TIS": {"off_policy": {"correction": "truncate", "high": 1.5}},
    "cpg with sequence TIS": {"off_policy": {"correction": "truncate", "level": "sequence"}},
    "cpg around proximal": {"off_policy": {"anchor": "proximal"}},
    "ppo": {"policy_loss": "ppo_clip"},
    "decoupled ppo": {"policy_loss": "ppo_clip", "off_policy": {"anchor": "proximal"}},
    "icepop": {
        "policy_loss": "ppo_clip",
        "off_policy": {"anchor": "proximal", "correction": "mask", "tokens": "all"},
    },
    "geometric mask": {
        "policy_loss": "ppo_clip",
        "off_policy": {
            "anchor": "proximal", "correction": "mask", "level": "geometric",
            "low": 0.9, "high": 1.3,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_step_is_that_of_a_plain_loop(name: str, epochs: int) -> None:
    config, engine, samples = make_config(epochs, **OBJECTIVES[name]), TableEngine(), make_samples()
    before = engine.logits.detach().clone()
    update_policy(engine, samples, VERSION, config)  # type: ignore[arg-type]
    assert not torch.allclose(engine.logits, before, atol=1e-3)
    assert torch.allclose(engine.logits, plain_step(samples, config), atol=1e-5)


def test_the_objectives_of_the_table_are_different_ones() -> None:
    steps = [plain_step(make_samples(), make_config(3, **o)) for o in OBJECTIVES.values()]
    for index, one in enumerate(steps):
        for other in steps[:index]:
            assert not torch.allclose(one, other, atol=1e-4)


def test_a_decoupled_objective_needs_no_forward_pass_of_its_own() -> None:
    engine = TableEngine()
    config = make_config(2, **OBJECTIVES["decoupled ppo"])
    update_policy(engine, make_samples(), VERSION, config)  # type: ignore[arg-type]
    assert engine.forwards == 2


def test_telemetry_tells_how_far_the_batch_is_off_policy() -> None:
    samples = make_samples()
    config = make_config(2, **OBJECTIVES["icepop"])
    start = TableEngine().logits.log_softmax(-1).detach().numpy()
    found = update_policy(TableEngine(), samples, VERSION, config)  # type: ignore[arg-type]
    kept = [s.loss_mask > 0 for s in samples]
    gaps = np.concatenate(
        [(start[s.tokens] - s.behavior_logprobs)[k] for s, k in zip(samples, kept, strict=True)]
    )
    ratios = np.exp(gaps)
    assert found["kl_behavior_k1"] == pytest.approx(-gaps.mean(), rel=1e-4)
    assert found["kl_behavior"] == pytest.approx((ratios - 1 - gaps).mean(), rel=1e-4)
    share = ratios.sum() ** 2 / (ratios.size * (ratios**2).sum())
    assert found["effective_sample_share"] == pytest.approx(share, rel=1e-4)
    is_masked = (ratios < 0.5) | (ratios > 5)
    assert 0 < is_masked.mean() < 1
    assert found["masked_share"] == pytest.approx(is_masked.mean())
    weights = np.where(is_masked, 0, ratios)
    assert found["weight_mean"] == pytest.approx(weights.mean(), rel=1e-4)
    assert found["weight_max"] == pytest.approx(weights.max(), rel=1e-4)
    assert found["weight_clipped_share"] == 0
    ages = np.concatenate(
        [(VERSION - s.token_versions)[k] for s, k in zip(samples, kept, strict=True)]
    )
    histogram = [found[f"staleness_share_{k}"] for k in range(3)]
    assert histogram == pytest.approx([(ages == k).mean() for k in range(3)])
    assert "staleness_share_3" not in found


def test_a_fresh_batch_of_the_policy_itself_tells_zero_distance() -> None:
    samples = make_samples()
    start = TableEngine().logits.log_softmax(-1).detach().numpy()
    for s in samples:
        s.behavior_logprobs[:] = start[s.tokens]
        s.token_versions[:] = VERSION
    for objective in OBJECTIVES.values():
        config = make_config(**objective)
        found = update_policy(TableEngine(), samples, VERSION, config)  # type: ignore[arg-type]
        names = ("kl_behavior", "kl_behavior_k1", "masked_share", "weight_clipped_share")
        assert [found[name] for name in names] == [0, 0, 0, 0]
        ones = ("weight_mean", "weight_max", "effective_sample_share", "staleness_share_0")
        assert [found[name] for name in ones] == [1, 1, 1, 1]
