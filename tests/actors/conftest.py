"""A laboratory that knows every weight version an engine ever served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from actors.transformers_engine import TransformersEngine
from actors.vllm_engine import VllmEngine
from learners.safetensors_stream import Slot
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from safeladder.partials import PartialCompletion
from safeladder.records import (
    Completion,
    Message,
    Prompt,
    Sampling,
    TensorSpec,
    WeightManifest,
)
from safeladder.tensors import checksum
from safeladder.weight_payload import WeightPayload, split
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


class PublishedPolicy:
    """What a publisher sees of a learner that holds this model."""

    rank = 0

    def __init__(self, model: Qwen2ForCausalLM) -> None:
        self._parameters = dict(model.named_parameters())

    def weight_slots(self, *, only_trained: bool) -> dict[str, Slot]:
        return {n: Slot("float32", tuple(p.shape)) for n, p in self._parameters.items()}

    def weights(self, *, only_trained: bool) -> Iterator[tuple[str, torch.Tensor]]:
        yield from ((n, p.detach().clone()) for n, p in self._parameters.items())


class DictStore:
    """A payload store in this process."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    async def put(self, value: Any) -> int:
        self.values[len(self.values)] = value
        return len(self.values) - 1

    async def get(self, handle: int) -> Any:
        return self.values[handle]

    async def put_weights(self, raw: Raw, chunk_bytes: int = 20_000) -> WeightPayload:
        """Store a version in chunks."""
        sizes = {name: array.nbytes for name, array in raw.items()}
        chunks = [{n: raw[n] for n in names} for names in split(sizes, chunk_bytes)]
        return WeightPayload(chunks=tuple([await self.put(chunk) for chunk in chunks]))


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
        self, change: Callable[[str], bool] = lambda name: True, share: float = 1.0
    ) -> tuple[WeightManifest, Raw]:
        """The next version: the current one with noise on a share of the elements of the tensors
        that ``change`` selects. Only those are in the manifest."""
        successor = tiny_model(tiny_tokenizer())
        successor.load_state_dict(self.models[self.version].state_dict())
        generator = torch.Generator().manual_seed(self.version)
        names = [n for n, _ in successor.named_parameters() if change(n)]
        with torch.no_grad():
            for name in names:
                tensor = successor.get_parameter(name)
                noise = (0.08 / share**0.5) * torch.randn(tensor.shape, generator=generator)
                if share < 1:
                    noise *= torch.rand(tensor.shape, generator=generator) < share
                tensor.add_(noise)
        self.models[self.version + 1] = successor
        return publish(dict(successor.named_parameters()), names, self.version + 1)

    async def update(self, manifest: WeightManifest, raw: Raw) -> None:
        await self.engine.pause()
        try:
            await self.engine.load(manifest, raw)
        finally:
            await self.engine.resume()

    async def answers(
        self,
        prompt: Prompt,
        sampling: Sampling,
        request_id: str = "r",
        begun: Sequence[PartialCompletion] | None = None,
    ) -> list[Any]:
        stream = self.engine.generate(request_id, prompt, sampling, begun)
        async with contextlib.aclosing(stream) as s:
            return sorted([c async for c in s], key=lambda c: c.index)

    async def interrupted(
        self, prompt: Prompt, sampling: Sampling, num_tokens: int
    ) -> tuple[list[Any], tuple[int, ...]]:
        """What a request that is interrupted after so many tokens yields, and the counts at that
        moment."""
        request = asyncio.ensure_future(self.answers(prompt, sampling, "interrupted"))
        counts = await self.pause_after("interrupted", num_tokens)
        stop = asyncio.ensure_future(self.engine.interrupt("interrupted"))
        await asyncio.sleep(0)
        await self.engine.resume()
        await stop
        return await request, counts

    async def catch_up(self, version: int) -> None:
        """Serve at least this version."""
        while self.version < version:
            await self.update(*self.prepare())

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


ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.engine)]
EXACT = 1e-4
LONG = "tell me a story of two foxes and a bear"
"""With the template more than one block of vLLM's cache."""


def rollout_config(kv_on_update: Literal["keep", "recompute"] = "keep") -> RolloutConfig:
    return RolloutConfig(
        max_prompt_tokens=80,
        max_new_tokens=200,
        kv_on_update=kv_on_update,
        vllm=VllmConfig(cpu_kv_cache_gib=0.25, max_num_seqs=4),
    )


def laboratory(kind: str, path: Path, kv: Literal["keep", "recompute"]) -> Iterator[Laboratory]:
    model = ModelConfig(path=path, dtype="float32")
    if kind == "vllm":  # several chunks for every update
        engine: Any = VllmEngine(model, rollout_config(kv), seed=0, chunk_bytes=20_000)
    else:
        engine = TransformersEngine(model, rollout_config(kv), seed=0)
    with asyncio.Runner() as runner:
        lab = Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())})
        lab.run(engine.start(), timeout=180)
        try:
            yield lab
        finally:
            lab.run(engine.close())


@pytest.fixture(scope="module", params=ENGINES)
def lab(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Laboratory]:
    yield from laboratory(request.param, model_path, "keep")


def error(lab: Laboratory, completion: Completion, version: int, temperature: float = 1.0) -> Any:
    """[T] distance from the log-probs of a plain forward pass under a version."""
    plain = plain_logprobs(lab.oracle(version), completion, temperature)
    return np.abs(plain.numpy() - completion.behavior_logprobs)


def assert_versions_change_exactly_at(
    completions: list[Completion], counts: tuple[int, ...], old: int
) -> None:
    for completion, count in zip(completions, counts, strict=True):
        expected = [old] * count + [old + 1] * (completion.tokens.size - count)
        assert completion.token_versions.tolist() == expected
