"""A tiny random chat model with a byte tokenizer, and a laboratory that knows every weight
version an engine ever served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from safeladder.records import (
    Completion,
    Message,
    Prompt,
    Sampling,
    TensorSpec,
    WeightManifest,
)
from safeladder.tensors import checksum

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>", chat_template=CHAT
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Tied embeddings and biased attention, so that both are covered."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.15, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(7)
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ask(text: str, name: str = "p") -> Prompt:
    return Prompt(id=name, messages=(Message("user", text),), route="any")


def draw(n: int = 2, tokens: int = 12, temperature: float = 1.0, seed: int | None = 5) -> Sampling:
    return Sampling(
        num_samples=n, max_new_tokens=tokens, temperature=temperature, seed=seed
    )  # fmt: skip


Raw = dict[str, np.ndarray[Any, np.dtype[np.uint8]]]


def publish(
    state: dict[str, torch.Tensor], names: Sequence[str], version: int, fence: int = 1
) -> tuple[WeightManifest, Raw]:
    """A manifest of the named tensors and their raw bytes."""
    raw = {n: state[n].detach().contiguous().view(torch.uint8).flatten().numpy() for n in names}
    specs = tuple(
        TensorSpec(name=n, dtype="float32", shape=tuple(state[n].shape), checksum=checksum(raw[n]))
        for n in names
    )
    return WeightManifest(version=version, fence=fence, tensors=specs), raw


def plain_logprobs(
    model: Qwen2ForCausalLM, completion: Completion, temperature: float = 1.0
) -> torch.Tensor:
    """[T] by one forward pass over prompt and answer, nothing shared with any engine."""
    ids = torch.tensor([[*completion.prompt_tokens.tolist(), *completion.tokens.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    start = completion.prompt_tokens.size
    targets = ids[0, start:]
    return torch.log_softmax(logits[start - 1 : -1], -1).gather(1, targets[:, None])[:, 0]


class DictStore:
    """A payload store in this process."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    async def put(self, value: Any) -> int:
        self.values[len(self.values)] = value
        return len(self.values) - 1

    async def get(self, handle: int) -> Any:
        return self.values[handle]


@dataclass
class Laboratory:
    """An engine, the loop it lives in, and a plain model for every version it served."""

    engine: Any
    runner: asyncio.Runner
    models: dict[int, Qwen2ForCausalLM] = field(default_factory=dict)

    def run(self, work: Any, timeout: float = 60) -> Any:
        return self.runner.run(asyncio.wait_for(work, timeout))

    @property
    def version(self) -> int:
        return int(self.engine.served_version)

    def oracle(self, version: int) -> Qwen2ForCausalLM:
        return self.models[version]

    def prepare(
        self, change: Callable[[str], bool] = lambda name: True
    ) -> tuple[WeightManifest, Raw]:
        """The next version: the current one with noise on the tensors that ``change`` selects.
        Only those are in the manifest."""
        successor = tiny_model(tiny_tokenizer())
        successor.load_state_dict(self.models[self.version].state_dict())
        generator = torch.Generator().manual_seed(self.version)
        names = [n for n, _ in successor.named_parameters() if change(n)]
        with torch.no_grad():
            for name in names:
                tensor = successor.get_parameter(name)
                tensor.add_(0.08 * torch.randn(tensor.shape, generator=generator))
        self.models[self.version + 1] = successor
        return publish(dict(successor.named_parameters()), names, self.version + 1)

    async def update(self, manifest: WeightManifest, raw: Raw) -> None:
        await self.engine.pause()
        try:
            await self.engine.load(manifest, raw)
        finally:
            await self.engine.resume()

    async def answers(
        self, prompt: Prompt, sampling: Sampling, request_id: str = "r"
    ) -> list[Completion]:
        async with contextlib.aclosing(self.engine.generate(request_id, prompt, sampling)) as s:
            return sorted([c async for c in s], key=lambda c: c.index)

    def is_in_flight(self, request_id: str) -> bool:
        try:
            return bool(self.engine.progress(request_id))
        except KeyError:
            return False

    async def pause_after(self, request_id: str, num_tokens: int) -> tuple[int, ...]:
        """Step until the samples have at least so many tokens (the transformers engine: exactly
        so many, unless finished); leaves the engine paused."""
        while not self.is_in_flight(request_id):  # noqa: ASYNC110 - the request's task starts it
            await asyncio.sleep(0)
        await self.engine.pause()
        while max(self.engine.progress(request_id)) < num_tokens:
            await self.engine.resume()
            await self.engine.pause()
        return tuple(self.engine.progress(request_id))
