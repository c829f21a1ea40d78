"""The two sides of ``benchmarks.learner``: our learner, and the loop that people write.

Each lives in a process of its own and makes one optimizer step when asked. Both load the same
checkpoint, train the same parameters on the same sequences with the same loss (CPGD without drift),
and clip and update alike; they must report the same loss and gradient norm.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.config import Config
from safeladder.records import GroupKey, TrainingSample

EPSILON = 0.2
LR = 1e-6
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0
SEED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step trains; a fixed amount of work, the same in every round."""

    model: Path
    groups: int
    siblings: int
    prompt_tokens: int
    max_new_tokens: int
    threads: int

    @property
    def row_tokens(self) -> int:
        """Our budget of a packed row: about as many tokens as the plain loop's batch has."""
        return self.siblings * (self.prompt_tokens + self.max_new_tokens) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a side tells of one step."""

    seconds: float
    loss: float
    grad_norm: float
    peak_bytes: int
    """Largest resident size since the model was loaded."""
    loaded_bytes: int
    """Resident size when the model was loaded."""


def make_samples(work: Work, vocabulary: int) -> list[TrainingSample]:
    """Groups of siblings that share a prompt. The lengths of all completions are the midpoints of
    equal parts of (0, ``max_new_tokens``), in random order: their median is half of the maximum."""
    random = np.random.default_rng(SEED)
    count = work.groups * work.siblings
    lengths = np.ceil((np.arange(count) + 0.5) / count * work.max_new_tokens).astype(int)
    random.shuffle(lengths)
    samples = []
    for index, length in enumerate(lengths):
        group = index // work.siblings
        prompt = np.random.default_rng(group).integers(3, vocabulary, work.prompt_tokens)
        samples.append(
            TrainingSample(
                sample_id=f"0/{index}",
                group=GroupKey(0, group),
                prompt_tokens=prompt.astype(np.int32),
                tokens=random.integers(3, vocabulary, length).astype(np.int32),
                loss_mask=np.ones(length, np.float32),
                behavior_logprobs=(-10 + 3 * random.standard_normal(length)).astype(np.float32),
                token_versions=np.zeros(length, np.int32),
                reference_logprobs=None,
                reward=float(random.random()),
                finish_reason="stop",
            )
        )
    return samples


def serve(connection: Connection, side: str, work: Work) -> None:
    """In the side's own process: load, then one step for each message; None ends it."""
    import torch

    torch.set_num_threads(work.threads)
    loop = OurLearner(work) if side == "ours" else PlainLoop(work)
    loaded = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    connection.send("ready")
    while connection.recv() is not None:
        began = time.perf_counter()
        loss, norm = loop.step()
        seconds = time.perf_counter() - began
        connection.send(
            Step(
                seconds=seconds,
                loss=loss,
                grad_norm=norm,
                peak_bytes=_status_bytes("VmHWM"),
                loaded_bytes=loaded,
            )
        )


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class OurLearner:
    """One rank of our learner, as the actor has it."""

    def __init__(self, work: Work) -> None:
        import torch

        from learners.deepspeed_engine import DeepspeedEngine, EngineSettings
        from learners.policy_model import load_policy

        policy = load_policy(
            work.model,
            dtype=torch.float32,
            temperature=1.0,
            train_last_layers=None,
            gradient_checkpointing=False,
        )
        settings = EngineSettings(
            zero_stage=0,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            timeout_s=60,
        )
        self._engine = DeepspeedEngine(
            policy, settings, rank=0, world_size=1, master_address="127.0.0.1",
            master_port=_free_port(),
        )  # fmt: skip
        self._config = _config(work)
        self._samples = make_samples(work, policy.model.config.vocab_size)

    def step(self) -> tuple[float, float]:
        """Loss and gradient norm of one update."""
        from learners.policy_update import update_policy

        metrics = update_policy(self._engine, self._samples, 0, self._config)
        return metrics["loss"], metrics["grad_norm"]


class PlainLoop:
    """transformers and AdamW: one padded batch a group, logits of every position."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
        self._model.train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self._samples = make_samples(work, self._model.config.vocab_size)
        self._siblings = work.siblings

    def step(self) -> tuple[float, float]:
        """Loss and gradient norm of one update."""
        import torch

        total = sum(s.tokens.size for s in self._samples)
        summed = 0.0
        self._optimizer.zero_grad()
        for start in range(0, len(self._samples), self._siblings):
            loss = self._loss(self._samples[start : start + self._siblings]) / total
            loss.backward()
            summed += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRAD_NORM)
        self._optimizer.step()
        return summed, float(norm)

    def _loss(self, group: list[TrainingSample]) -> Any:
        """Sum over the completion tokens of one group of siblings."""
        import torch

        rewards = np.array([s.reward for s in group])
        advantages = torch.tensor((rewards - rewards.mean()) / (rewards.std() + 1e-9)).float()
        prompt = group[0].prompt_tokens.size
        longest = max(s.tokens.size for s in group)
        ids = torch.zeros(len(group), prompt + longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        behavior = torch.zeros(len(group), longest)
        for row, s in enumerate(group):
            end = prompt + s.tokens.size
            ids[row, :end] = torch.from_numpy(np.concatenate([s.prompt_tokens, s.tokens])).long()
            mask[row, :end] = 1
            behavior[row, : s.tokens.size] = torch.from_numpy(s.behavior_logprobs)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
        policy = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, prompt - 1 :]
        log_ratio = policy - behavior
        clipped = log_ratio.clamp(float(np.log1p(-EPSILON)), float(np.log1p(EPSILON)))
        gain = torch.minimum(log_ratio * advantages[:, None], clipped * advantages[:, None])
        return -(gain * mask[:, prompt:]).sum()


def _config(work: Work) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "benchmark", "steps": 1000},
            "model": {"path": str(work.model), "dtype": "float32"},
            "data": {"train": ["none.jsonl"]},
            "principles": {"p": {"verifier": "rewards.rules:Rule"}},
            "routes": {"safety": {"p": 1.0}},
            "learner": {
                "lr": LR,
                "micro_batch_tokens": work.row_tokens,
                "objective": {"clip_epsilon": EPSILON, "drift_coefficient": 0.0},
            },
        }
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
