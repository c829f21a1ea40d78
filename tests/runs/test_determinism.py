"""Deterministic mode: two runs are one run, and at bound 0 it is plain synchronous training.

The second witness is a loop without Ray, coordinator, packing or DeepSpeed, written from the
formulas: CPGD report (arXiv 2505.12504) with token mean and std weight, AdamW, and the filter of
groups whose siblings do not differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.transformers_engine import TransformersEngine
from curricula.prompts import PromptOrder, load_prompts
from rewards.building import build_verifier
from rewards.combine import combine_rewards
from safeladder.config import Config
from safeladder.config_loading import load_config
from safeladder.records import (
    Completion,
    GroupKey,
    Prompt,
    Sampling,
    ScoreRequest,
    TensorSpec,
    WeightManifest,
)
from safeladder.tensors import checksum

from .conftest import DETERMINISTIC, finished, write_config
from .readings import assert_same_batch, batch, metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(600)]

STEPS = 3
"""Compared with the plain loop, and repeated."""


def test_two_runs_are_the_same_bit_for_bit(
    whole_run: Path, tiny_model: Path, tmp_path: Path
) -> None:
    again = finished(write_config(tmp_path, tiny_model, "again", STEPS, DETERMINISTIC))
    rows, expected = metrics(again), metrics(whole_run)
    assert sorted(rows) == [1, 2, 3]
    for step in rows:
        assert rows[step] == expected[step]
        assert_same_batch(again, whole_run, step)


@dataclass(frozen=True)
class Group:
    """What one prompt brought."""

    key: GroupKey
    completions: list[Completion]
    rewards: list[float]


Plain = list[tuple[list[Group], dict[str, float]]]
"""For each step its groups and what training them measured."""


class PlainLoop:
    """Sample, score, train; then sample again. Nothing overlaps."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._engine = TransformersEngine(config.model, config.rollout, seed=0)
        self._model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=config.learner.lr,
            betas=config.learner.betas,
            weight_decay=config.learner.weight_decay,
        )
        self._verifiers = {n: build_verifier(n, p) for n, p in config.principles.items()}
        self._prompts = PromptOrder(
            load_prompts(config.data.train, config.routes), config.run.seed, config.data.shuffle
        )
        self._key: GroupKey | None = None

    async def run(self, steps: int) -> Plain:
        await self._engine.start()
        for verifier in self._verifiers.values():
            await verifier.start()
        done: Plain = []
        try:
            for step in range(1, steps + 1):
                groups = await self._gather()
                done.append((groups, self._train(groups)))
                await self._load(step)
        finally:
            await self._engine.close()
        return done

    async def _gather(self) -> list[Group]:
        """Prompt after prompt, until there are enough groups whose siblings differ."""
        groups: list[Group] = []
        while len(groups) < self._config.schedule.groups_per_step:
            self._key = self._prompts.next_key(self._key)
            prompt = self._prompts.prompt(self._key)
            completions = await self._sample(self._key, prompt)
            rewards = [await self._reward(self._key, prompt, one) for one in completions]
            if max(rewards) - min(rewards) > 1e-9:
                groups.append(Group(self._key, completions, rewards))
        return groups

    async def _sample(self, key: GroupKey, prompt: Prompt) -> list[Completion]:
        rollout = self._config.rollout
        text = f"{self._config.run.seed}/{key.epoch}/{key.ordinal}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        sampling = Sampling(
            num_samples=rollout.group_size,
            max_new_tokens=rollout.max_new_tokens,
            temperature=1.0,
            seed=seed,
        )
        async with aclosing(self._engine.generate(text, prompt, sampling)) as stream:
            return sorted([one async for one in stream], key=lambda one: one.index)

    async def _reward(self, key: GroupKey, prompt: Prompt, one: Completion) -> float:
        request = ScoreRequest(
            sample_id=f"{key.epoch}/{key.ordinal}/{one.index}",
            attempt=1,
            messages=prompt.messages,
            response=one.text,
            finish_reason=one.finish_reason,
            num_tokens=one.tokens.size,
            route=prompt.route,
            reference=prompt.reference,
            lang=prompt.lang,
            meta=prompt.meta,
        )
        weights = self._config.routes[prompt.route]
        verdicts = {name: (await self._verifiers[name].score([request]))[0] for name in weights}
        return combine_rewards(weights, verdicts)

    def _train(self, groups: list[Group]) -> dict[str, float]:
        samples = [
            (one, (reward - np.mean(group.rewards)) / np.std(group.rewards))
            for group in groups
            for one, reward in zip(group.completions, group.rewards, strict=True)
        ]
        total = sum(one.tokens.size for one, _ in samples)
        epochs = self._config.learner.epochs
        losses, norms, surprise = [], [], 0.0
        for epoch in range(epochs):
            self._optimizer.zero_grad()
            loss = torch.zeros(())
            for one, advantage in samples:
                logprobs = self._logprobs(one)
                loss = loss + self._cpgd(logprobs, one, float(advantage), epoch > 0).sum() / total
                surprise -= logprobs.sum().item() / total
            loss.backward()
            norms.append(
                torch.nn.utils.clip_grad_norm_(
                    self._model.parameters(), self._config.learner.max_grad_norm
                ).item()
            )
            self._optimizer.step()
            losses.append(loss.item())
        return {
            "loss": sum(losses) / epochs,
            "grad_norm": max(norms),
            "entropy": surprise / epochs,
            "last_loss": losses[-1],
        }

    def _logprobs(self, one: Completion) -> Tensor:
        ids = torch.from_numpy(np.concatenate([one.prompt_tokens, one.tokens])).long()
        logits = self._model(input_ids=ids[None], use_cache=False).logits[0]
        answer = logits[one.prompt_tokens.size - 1 : -1]
        return answer.log_softmax(-1).gather(1, ids[one.prompt_tokens.size :, None])[:, 0]

    def _cpgd(
        self, logprobs: Tensor, one: Completion, advantage: Tensor | float, is_later_epoch: bool
    ) -> Tensor:
        """Clipped policy gradient and drift. From the second epoch on the policy is another than
        the one that sampled, and the advantage is scaled by how far it has gone."""
        objective = self._config.learner.objective
        log_ratio = logprobs - torch.from_numpy(one.behavior_logprobs)
        gone = (
            log_ratio.detach().exp().clamp(1 - objective.clip_epsilon, 1 + objective.clip_epsilon)
        )
        advantage = advantage * gone if is_later_epoch else advantage
        low = math.log(1 - objective.clip_epsilon)
        high = math.log(1 + objective.clip_epsilon)
        gain = torch.minimum(log_ratio * advantage, log_ratio.clamp(low, high) * advantage)
        pull = (log_ratio.detach().exp() - 1).clamp(max=objective.drift_cap) * logprobs
        return -gain + objective.drift_weight * pull

    async def _load(self, version: int) -> None:
        raw = {
            name: parameter.detach().reshape(-1).view(torch.uint8).numpy().copy()
            for name, parameter in self._model.named_parameters()
        }
        specs = tuple(
            TensorSpec(
                name=name,
                dtype="float32",
                shape=tuple(parameter.shape),
                checksum=checksum(raw[name]),
            )
            for name, parameter in self._model.named_parameters()
        )
        await self._engine.pause()
        try:
            await self._engine.load(WeightManifest(version=version, fence=1, tensors=specs), raw)
        finally:
            await self._engine.resume()


@pytest.fixture(scope="module")
def plain(whole_run: Path) -> Plain:
    return asyncio.run(PlainLoop(load_config([whole_run / "config.yaml"])).run(STEPS))


def test_bound_0_samples_and_scores_as_a_plain_loop(whole_run: Path, plain: Plain) -> None:
    for step, (groups, _) in enumerate(plain, start=1):
        arrays, ids = batch(whole_run, step)
        assert ids == [f"{g.key}/{one.index}" for g in groups for one in g.completions]
        tokens = np.concatenate([one.tokens for g in groups for one in g.completions])
        np.testing.assert_array_equal(arrays["tokens"], tokens, f"step {step}")
        np.testing.assert_array_equal(
            arrays["rewards"], np.concatenate([g.rewards for g in groups])
        )
        assert set(arrays["token_versions"]) == {step - 1}


def test_bound_0_has_the_losses_of_a_plain_loop(whole_run: Path, plain: Plain) -> None:
    rows: dict[int, dict[str, Any]] = metrics(whole_run)
    for step, (_, expected) in enumerate(plain, start=1):
        assert abs(expected["last_loss"]) > 1e-3, "a loss of 0 would prove nothing"
        for name, within in (("loss", 1e-5), ("entropy", 1e-5), ("grad_norm", 1e-4)):
            found = rows[step][f"train/{name}"]
            assert abs(found - expected[name]) < within, f"step {step}: {name}"
