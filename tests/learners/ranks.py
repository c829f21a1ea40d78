"""A learner group for tests: a tiny model, hand-made orders, real ranks in spawned processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safeladder.config import Config
from safeladder.records import (
    Completion,
    GroupKey,
    Message,
    Prompt,
    RolloutGroup,
    TrainGroup,
    TrainOrder,
)

VOCABULARY = 97
DEADLINE_S = 200.0
PRELOADED = ["deepspeed", "learners.learner", "openrlhf.utils.seqlen_balancing"]

Scenario = Callable[[Any, dict[str, Any]], Awaitable[Any]]
"""What every rank does with its started learner, and the arguments; rank 0's value comes back."""


def make_tiny_model(folder: Path) -> None:
    """A random Llama of three layers with a tied head, and a word tokenizer with a template."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    backend = Tokenizer(WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def make_config(model: Path, root: Path, **learner: Any) -> Config:
    """A run of the tiny model in float32; keyword arguments go to ``learner``."""
    settings = {"lr": 1e-2, "micro_batch_tokens": 64, "train_last_layers": 2, **learner}
    return Config.model_validate(
        {
            "run": {"name": "tiny", "root": str(root), "steps": 9},
            "model": {"path": str(model), "dtype": settings.pop("dtype", "float32")},
            "data": {"train": ["none.jsonl"]},
            "principles": {"p": {"verifier": "rewards.rules:Rule"}},
            "routes": {"safety": {"p": 1.0}},
            "rollout": {"max_prompt_tokens": 16, "max_new_tokens": 16, "temperature": 0.7},
            "reference": {"kl_coefficient": 0.05},
            "schedule": {"groups_per_step": 4, "max_staleness": 1},
            "learner": settings,
        }
    )


class MemoryStore:
    """The payload port inside one process: the handle is the value."""

    async def put(self, value: Any) -> Any:
        return value

    async def get(self, handle: Any) -> Any:
        return handle


def make_order(step: int, *, groups: int = 4, siblings: int = 3, fence: int = 1) -> TrainOrder:
    """Random groups with prompts of 3-7 and answers of 1-8 tokens, half of them one version old."""
    random = np.random.default_rng(step)
    ordered = []
    for ordinal in range(groups):
        key = GroupKey(0, step * groups + ordinal)
        prompt_tokens = random.integers(1, VOCABULARY, random.integers(3, 8)).astype(np.int32)
        completions, references = [], []
        for index in range(siblings):
            length = int(random.integers(1, 9))
            behavior = (-4.6 + 0.4 * random.standard_normal(length)).astype(np.float32)
            version = max(step - 1 - index % 2, 0)
            completions.append(
                Completion(
                    index=index,
                    prompt_tokens=prompt_tokens,
                    tokens=random.integers(1, VOCABULARY, length).astype(np.int32),
                    behavior_logprobs=behavior,
                    token_versions=np.full(length, version, np.int32),
                    text="",
                    finish_reason="stop",
                )
            )
            references.append(behavior + np.float32(0.1))
        prompt = Prompt(id=str(ordinal), messages=(Message("user", "w1"),), route="safety")
        payload = RolloutGroup(
            key=key, attempt=1, fence=fence, prompt=prompt, completions=tuple(completions)
        )
        rewards = tuple(float(r) for r in random.integers(0, 3, siblings))
        ordered.append(
            TrainGroup(
                key=key,
                attempt=1,
                payload=payload,
                reference=tuple(references),
                rewards=rewards,
                audit="{}",
            )
        )
    return TrainOrder(step=step, fence=fence, groups=tuple(ordered))


@dataclass(frozen=True)
class Job:
    """One learner group: its config, what to resume from, what to do."""

    config: Config
    scenario: Scenario
    arguments: dict[str, Any] = field(default_factory=dict)
    resume_from: Path | None = None


def run_jobs(world_size: int, jobs: list[Job]) -> list[Any]:
    """Run the jobs one after another, each on ``world_size`` fresh processes; rank 0's values."""
    return [_run(world_size, job) for job in jobs]


def _run(world_size: int, job: Job) -> Any:
    # A server that has imported the heavy packages once forks the ranks in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers = context.Queue()
    port = _free_port()
    processes = [
        context.Process(target=_rank, args=(rank, world_size, job, port, answers))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        is_good, value = answers.get(timeout=DEADLINE_S)
        assert is_good, value
        for process in processes:
            process.join(timeout=DEADLINE_S)
        return value
    finally:
        for process in processes:
            process.kill()
            process.join()


def _rank(rank: int, world_size: int, job: Job, port: int, answers: Any) -> None:
    try:
        value = asyncio.run(_run_job(rank, world_size, job, port))
    except Exception as error:  # noqa: BLE001 - told to the test, which fails with it
        answers.put((False, f"rank {rank}: {type(error).__name__}: {error}"))
        return
    if rank == 0:
        answers.put((True, value))


async def _run_job(rank: int, world_size: int, job: Job, port: int) -> Any:
    from learners.learner import Learner

    learner = Learner(rank, world_size, job.config, MemoryStore())
    await learner.start("127.0.0.1", port, job.config.model.path, job.resume_from)
    value = await job.scenario(learner, job.arguments)
    await learner.close()
    return value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
