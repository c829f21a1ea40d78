"""Two inner epochs of every profile against a plain loop that has the papers' numbers written out.

The loop reads no config: what a profile says and how it is composed are both held against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.packing import PackedRow
from learners.policy_update import update_policy
from safeladder.config import Config
from safeladder.objective_profiles import PROFILES
from safeladder.records import GroupKey, TrainingSample
from tests.learners.bare_config import bare_config
from tests.learners.test_policy_update import LR, VERSION, VOCABULARY, TableEngine

LIMIT = 8
"""rollout.max_new_tokens"""
HEAD_SCALE = 0.1 / LR


class ValuedTableEngine(TableEngine):
    """A table of logits, and one of the values after each token."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.table = torch.randn(VOCABULARY, generator=generator).requires_grad_()

    def logprobs_and_values(self, row: PackedRow) -> tuple[Tensor, Tensor]:
        before = torch.from_numpy(row.tokens[row.logit_index]).long()
        return self.logprobs(row), self.table[before]

    def step(self, lr: float) -> float:
        if self.table.grad is not None:
            with torch.no_grad():
                self.table -= lr * HEAD_SCALE * self.table.grad
            self.table.grad = None
        return super().step(lr)


def make_config(profile: str, micro_batch_tokens: int = 64) -> Config:
    learner = {
        "lr": LR,
        "epochs": 2,
        "micro_batch_tokens": micro_batch_tokens,
        "objective": {"profile": profile},
    }
    return bare_config(learner, rollout={"max_new_tokens": LIMIT})


NOISE = {"gspo": 8e-4, "cispo": 1.2}
"""Distance of the policy that sampled, where the trust region is far narrower or wider."""


def make_samples(profile: str = "default") -> list[TrainingSample]:
    """Three groups of four; sampled by something near the table's policy, with a tool's tokens."""
    random = np.random.default_rng(8)
    start = TableEngine().logits.log_softmax(-1).detach().numpy()
    samples = []
    for index in range(12):
        length = int(random.integers(2, LIMIT + 1))
        tokens = random.integers(0, VOCABULARY, length).astype(np.int32)
        mask = np.ones(length, np.float32)
        mask[1 : 1 + index % 3] = 0
        mask[0] = 1
        noise = NOISE.get(profile, 0.15) * random.standard_normal((2, length)).astype(np.float32)
        samples.append(
            TrainingSample(
                sample_id=f"0/{index}",
                group=GroupKey(0, index // 4),
                prompt_tokens=np.array([1, 2, index // 4], np.int32),
                tokens=tokens,
                loss_mask=mask,
                behavior_logprobs=start[tokens] + noise[0],
                token_versions=np.full(length, VERSION, np.int32),
                reference_logprobs=start[tokens] + noise[1],
                reward=float(random.integers(0, 3)),
                finish_reason="length" if length == LIMIT else "stop",
            )
        )
    return samples


Sample = TrainingSample


def trained(s: Sample) -> list[int]:
    return [t for t in range(s.tokens.size) if s.loss_mask[t]]


def group_of(s: Sample, samples: list[Sample]) -> list[Sample]:
    return [o for o in samples if o.group == s.group]


def k1(s: Sample, t: int) -> float:
    assert s.reference_logprobs is not None
    return float(s.behavior_logprobs[t] - s.reference_logprobs[t])


def centered(s: Sample, samples: list[Sample]) -> float:
    return s.reward - fmean(o.reward for o in group_of(s, samples))


def deviation(s: Sample, samples: list[Sample]) -> float:
    return pstdev(o.reward for o in group_of(s, samples))


def grpo(s: Sample, samples: list[Sample]) -> float:
    spread = deviation(s, samples)
    return centered(s, samples) / spread if spread else 0.0


def clip_filter(s: Sample, samples: list[Sample]) -> float:
    groups = {o.group: deviation(o, samples) > 0 for o in samples}
    return centered(s, samples) * min(3.0, len(groups) / sum(groups.values()))


def dapo_scores(s: Sample, samples: list[Sample]) -> float:
    """Rewards less the penalty over a fifth of the limit, which is one token here."""
    shaped = {
        o.sample_id: o.reward + min(0, -(len(trained(o)) - (LIMIT - 1)))
        for o in group_of(s, samples)
    }
    spread = pstdev(shaped.values())
    return (shaped[s.sample_id] - fmean(shaped.values())) / spread if spread else 0.0


def others(s: Sample, samples: list[Sample]) -> float:
    return s.reward - fmean(o.reward for o in group_of(s, samples) if o is not s)


def cale(s: Sample, samples: list[Sample]) -> float:
    group = group_of(s, samples)
    alpha = 0.9 + 0.1 * VERSION / 100  # step VERSION + 1 of 100
    ranked = sorted(group, key=lambda o: (o.finish_reason == "length", len(trained(o))))
    places = {(o.finish_reason, len(trained(o))) for o in group}
    assert len(places) > 1
    short, long = ranked[:2], ranked[2:]
    m_s, m_l = fmean(o.reward for o in short), fmean(o.reward for o in long)
    if any(o is s for o in long):
        return 0.5 * (alpha * s.reward - m_s) + 0.5 * (s.reward - m_l)
    return 0.5 * (s.reward - alpha * m_l) + 0.5 * (s.reward - m_s)


Advantages = dict[tuple[str, int], float]


def flat(score: Callable[[Sample, list[Sample]], float], kl: float = 0.0) -> Any:
    """Every trained token has the score of its answer, less the KL of itself and all later ones."""

    def found(samples: list[Sample]) -> Advantages:
        return {
            (s.sample_id, t): score(s, samples)
            - kl * sum(k1(s, later) for later in trained(s) if later >= t)
            for s in samples
            for t in trained(s)
        }

    return found


def z(make: Callable[[list[Sample]], Advantages]) -> Callable[[list[Sample]], Advantages]:
    def found(samples: list[Sample]) -> Advantages:
        raw = make(samples)
        mean, spread = fmean(raw.values()), pstdev(raw.values())
        return {key: (a - mean) / spread for key, a in raw.items()}

    return found


def value_before(s: Sample, t: int, table: Tensor) -> Tensor:
    return table[int(s.prompt_tokens[-1] if t == 0 else s.tokens[t - 1])]


def gae(samples: list[Sample]) -> Advantages:
    table = ValuedTableEngine().table.detach()
    found: Advantages = {}
    for s in samples:
        later = value = 0.0
        for t in reversed(trained(s)):
            reward = -0.01 * k1(s, t) + (s.reward if t == trained(s)[-1] else 0.0)
            own = float(value_before(s, t, table))
            later = reward + value - own + 0.95 * later
            value = own
            found[s.sample_id, t] = later
    return found


ADVANTAGES: dict[str, Callable[[list[Sample]], Advantages]] = {
    "cpgd": flat(grpo),
    "lightrft": flat(clip_filter),
    "grpo": flat(grpo),
    "dr_grpo": flat(centered),
    "dapo": flat(dapo_scores),
    "rloo": z(flat(others, kl=0.01)),
    "reinforce_pp": z(flat(lambda s, _: s.reward, kl=0.01)),
    "reinforce_pp_baseline": z(flat(centered)),
    "gspo": flat(grpo),
    "cispo": flat(grpo),
    "ppo": z(gae),
    "cale": flat(cale),
}
SEQUENCE_MEAN = ("lightrft", "grpo", "reinforce_pp", "reinforce_pp_baseline", "gspo")
CPG = ("cpgd", "lightrft", "cale")


def weight(profile: str, s: Sample, samples: list[Sample]) -> float:
    if profile in SEQUENCE_MEAN:
        return 1 / len(samples) / len(trained(s))
    if profile in ("dr_grpo", "cale"):
        return 1 / len(samples) / LIMIT
    return 1 / sum(len(trained(o)) for o in samples)


def clipped(ratio: Tensor, a: float, low: float, high: float) -> Tensor:
    return -torch.minimum(ratio * a, ratio.clamp(low, high) * a)


def token_loss(profile: str, policy: Tensor, s: Sample, t: int, a: float, epoch: int) -> Tensor:
    own = policy[s.tokens[t]]
    ratio = (own - s.behavior_logprobs[t]).exp()
    if profile in CPG:
        bounded = own.detach() - float(s.behavior_logprobs[t])
        correction = math.exp(bounded) if epoch else 1.0
        loss = min(max(correction, 0.8), 1.2) * -torch.minimum(
            ratio.log() * a, ratio.log().clamp(math.log(0.8), math.log(1.2)) * a
        )
        if profile == "cpgd":
            loss = loss + 0.01 * min(float(ratio.detach()) - 1, 2.0) * own
        if profile == "lightrft":
            loss = loss + 0.001 * k3(own, s, t)
        return loss
    if profile == "gspo":
        gaps = [policy[s.tokens[i]] - s.behavior_logprobs[i] for i in trained(s)]
        return clipped(torch.stack(gaps).mean().exp(), a, 1 - 3e-4, 1 + 4e-4)
    if profile == "cispo":
        return -min(float(ratio.detach()), 5.0) * a * own
    loss = clipped(ratio, a, 0.8, 1.28 if profile == "dapo" else 1.2)
    return loss + 0.04 * k3(own, s, t) if profile == "grpo" else loss


def k3(own: Tensor, s: Sample, t: int) -> Tensor:
    assert s.reference_logprobs is not None
    gap = own - s.reference_logprobs[t]
    return (-gap).exp() - 1 + gap


def plain_steps(profile: str, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    engine = ValuedTableEngine()
    logits, table = engine.logits.detach().clone(), engine.table.detach().clone()
    start, advantages = table.clone(), ADVANTAGES[profile](samples)
    raw = gae(samples)
    for epoch in range(2):
        logits.requires_grad_()
        table.requires_grad_()
        policy, loss = logits.log_softmax(-1), torch.zeros(())
        for s in samples:
            for t in trained(s):
                a = advantages[s.sample_id, t]
                one = token_loss(profile, policy, s, t, a, epoch)
                if profile == "ppo":
                    before, now = value_before(s, t, start), value_before(s, t, table)
                    target = raw[s.sample_id, t] + float(before)
                    near = before + (now - before).clamp(-0.2, 0.2)
                    error = torch.maximum((now - target) ** 2, (near - target) ** 2)
                    one = one + 0.1 * error / 2
                loss = loss + weight(profile, s, samples) * one
        slopes = torch.autograd.grad(loss, (logits, table), allow_unused=True)
        assert slopes[0] is not None
        logits = (logits - LR * slopes[0]).detach()
        if slopes[1] is not None:
            table = (table - LR * HEAD_SCALE * slopes[1]).detach()
    return logits.detach(), table.detach()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_trains_as_a_plain_loop_with_its_published_numbers(profile: str) -> None:
    samples, engine = make_samples(profile), ValuedTableEngine()
    before = engine.logits.detach().clone()
    update_policy(engine, samples, VERSION, make_config(profile))  # type: ignore[arg-type]
    logits, table = plain_steps(profile, samples)
    assert not torch.allclose(engine.logits, before, atol=1e-4)
    assert torch.allclose(engine.logits, logits, atol=2e-5)
    assert torch.allclose(engine.table, table, atol=1e-5)


def test_the_profiles_are_different_methods() -> None:
    steps = [plain_steps(profile, make_samples())[0] for profile in PROFILES]
    for index, one in enumerate(steps):
        for other in steps[:index]:
            assert not torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_t12_group_statistics_do_not_depend_on_the_split_into_micro_batches(profile: str) -> None:
    seen = []
    for budget in (12, 200):
        engine, config = ValuedTableEngine(), make_config(profile, budget)
        found = update_policy(engine, make_samples(), VERSION, config)  # type: ignore[arg-type]
        seen.append((engine.logits.detach(), found["micro_batches"]))
    assert seen[0][1] > 3 * seen[1][1]
    assert torch.allclose(seen[0][0], seen[1][0], atol=2e-6)


def test_only_a_value_head_costs_a_forward_pass_more() -> None:
    forwards = {}
    for profile in ("grpo", "ppo"):
        engine = ValuedTableEngine()
        update_policy(engine, make_samples(), VERSION, make_config(profile, 200))  # type: ignore[arg-type]
        forwards[profile] = engine.forwards
    assert forwards == {"grpo": 2, "ppo": 3}


def test_telemetry_tells_what_the_head_explains_and_what_lengths_cost() -> None:
    samples = make_samples()
    found = update_policy(ValuedTableEngine(), samples, VERSION, make_config("ppo"))  # type: ignore[arg-type]
    start, raw = ValuedTableEngine().table.detach(), gae(samples)
    values = np.array([float(value_before(s, t, start)) for s in samples for t in trained(s)])
    returns = values + np.array([raw[s.sample_id, t] for s in samples for t in trained(s)])
    explained = 1 - ((values - returns) ** 2).mean() / returns.var()
    assert found["value_explained"] == pytest.approx(explained, rel=1e-4)
    assert found["value_loss"] > 0
    assert found["overlong_penalty"] == 0
    dapo = update_policy(ValuedTableEngine(), samples, VERSION, make_config("dapo"))  # type: ignore[arg-type]
    cut = [len(trained(s)) == LIMIT for s in samples]
    assert sum(cut) > 0
    assert dapo["overlong_penalty"] == pytest.approx(-fmean(cut))
    assert "value_loss" not in dapo


def test_a_return_with_kl_needs_the_reference_of_every_sample() -> None:
    samples = make_samples()
    samples[3] = TrainingSample(
        **{name: getattr(samples[3], name) for name in TrainingSample.__slots__}
        | {"reference_logprobs": None}
    )
    with pytest.raises(ValueError, match="no reference log-probs"):
        update_policy(ValuedTableEngine(), samples, VERSION, make_config("rloo"))  # type: ignore[arg-type]
