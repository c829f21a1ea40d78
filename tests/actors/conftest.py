"""A laboratory that knows every weight version an engine ever served."""

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
from transformers import Qwen2ForCausalLM

from safeladder.records import (
    Completion,
    Message,
    Prompt,
    Sampling,
    TensorSpec,
    WeightManifest,
)
from safeladder.tensors import checksum
from tests.tiny_model import save_tiny_model, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


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
