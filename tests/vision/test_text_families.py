"""Text models of other families go the same way: what an engine samples, reference and learner
price alike, whatever the architecture and the chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actors.reference import TransformersScorer
from actors.rendering import PromptRenderer
from actors.transformers_engine import TransformersEngine
from learners.packing import pack
from learners.policy_model import load_policy
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.records import Completion, Floats, Message, Prompt, Sampling, Tokens
from tests.tiny_model import CHAT, tiny_tokenizer

THINKING = CHAT.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
"""As DeepSeek-R1's distilled models: the template opens the chain, the model closes it."""
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.15,
    "bos_token_id": None,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def llama(**shared: Any) -> PreTrainedModel:
    """Without biases, head not tied, positions stretched as in Llama 3."""
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, **shared, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE)
    )


def qwen2(**shared: Any) -> PreTrainedModel:
    """With biases in its attention, head tied."""
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **shared, tie_word_embeddings=True))


MODELS: dict[str, tuple[Callable[..., PreTrainedModel], str]] = {
    "llama": (llama, CHAT),
    "qwen2": (qwen2, CHAT),
    "r1-distill-llama": (llama, THINKING),
    "r1-distill-qwen": (qwen2, THINKING),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build, template = MODELS[request.param]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    torch.manual_seed(7)
    model = build(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp(request.param)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Priced:
    """What packing reads of a sample."""

    prompt_tokens: Tokens
    tokens: Tokens
    loss_mask: Floats


def test_engine_reference_and_learner_agree(saved: Path) -> None:
    completions = asyncio.run(sampled(saved))
    renderer = PromptRenderer(saved)
    opens = renderer.decode(completions[0].prompt_tokens).endswith("<think>\n")
    assert opens == saved.name.startswith("r1")
    sequences = [
        Priced(one.prompt_tokens, one.tokens, np.ones(one.tokens.size, np.float32))
        for one in completions
    ]
    policy = load_policy(
        saved, dtype=torch.float32, temperature=1.0, train_last_layers=None,
        gradient_checkpointing=False,
    )  # fmt: skip
    (row,) = pack(sequences, ranks=1, budget=2000)[0]
    learner = policy(**policy.inputs(row, "cpu")).detach().numpy()
    engine = row.gather([one.behavior_logprobs for one in completions])
    reference = row.gather(asyncio.run(referenced(saved, completions)))
    np.testing.assert_allclose(learner, engine, atol=2e-5)
    np.testing.assert_allclose(reference, engine, atol=2e-5)


async def sampled(path: Path) -> list[Completion]:
    rollout = RolloutConfig(engine="transformers", max_prompt_tokens=200, max_new_tokens=16)
    engine = TransformersEngine(ModelConfig(path=path, dtype="float32"), rollout, seed=1)
    await engine.start()
    found: list[Completion] = []
    for name in ("Why?", "How many are there, and where?"):
        prompt = Prompt(id=name, messages=(Message("user", name),), route="any")
        draw = Sampling(num_samples=3, max_new_tokens=12, temperature=1.0, seed=5)
        found += [
            one async for one in engine.generate(name, prompt, draw) if isinstance(one, Completion)
        ]
    await engine.close()
    return found


async def referenced(path: Path, completions: list[Completion]) -> list[Floats]:
    scorer = TransformersScorer(path)
    await scorer.start()
    found = await scorer.logprobs([(one.prompt_tokens, one.tokens) for one in completions], 1.0)
    await scorer.close()
    return found
