"""A small, exact rollout engine on transformers: for tests and deterministic runs.

Owns its sampling loop. The samples of one request form one batch (continued ones: one for each
length), and nothing of another request enters it, so a result depends on the request, its seed and
the weights alone. Several requests
take turns, one token step each. All work on the model happens in one thread, so the event loop
stays free. Does not know leases, stores or where it runs.

A turn is a fair lock, and a pause is a turn that lasts until ``resume``: whoever waits is served
in order, so ``resume(); await pause()`` lets exactly one waiting request make one token step.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DynamicCache

from actors.local_model import LOCAL, require_folder
from actors.rendering import PromptRenderer
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.images import PromptImage
from safeladder.partials import PartialCompletion
from safeladder.ports import RawTensors
from safeladder.records import Completion, FinishReason, Prompt, Sampling, Tokens, WeightManifest
from vision.sequences import later_inputs, model_class, position_behind, whole_inputs

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Sample:
    """One answer in the making."""

    begun: PartialCompletion
    """As it came; the lists hold what was added here."""
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return self.begun.tokens.size + len(self.tokens)

    @property
    def all_tokens(self) -> list[int]:
        return [*self.begun.tokens.tolist(), *self.tokens]

    def so_far(self) -> PartialCompletion:
        return self.begun.and_then(
            np.asarray(self.tokens, dtype=np.int32),
            np.asarray(self.logprobs, dtype=np.float32),
            np.asarray(self.versions, dtype=np.int32),
        )


@dataclass(eq=False, slots=True)
class _Batch:
    """Samples of one request that have equally many tokens."""

    alive: list[_Sample]
    """Unfinished samples. Rows of the cache."""
    cache: Any = None
    """Keys and values of all but the last token of each row; None: compute anew."""


@dataclass(eq=False, slots=True)
class _Request:
    """One call of ``generate``."""

    prompt: Tokens
    sampling: Sampling
    samples: list[_Sample]
    batches: list[_Batch]
    images: Sequence[PromptImage]
    first_position: int
    """Of the answers."""
    is_interrupted: bool = False


class TransformersEngine:
    """``ports.RolloutEngine`` on a plain Hugging Face model.

    ``seed`` seeds samples whose ``Sampling.seed`` is None. ``threads`` are torch's, for the whole
    process; one keeps results independent of the machine's cores.
    """

    def __init__(
        self, model: ModelConfig, rollout: RolloutConfig, seed: int, threads: int = 1
    ) -> None:
        self._config = model
        self._rollout = rollout
        self._threads = threads
        self._seeds = random.Random(seed)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers-engine")
        self._turn = asyncio.Lock()
        self._is_paused = False
        self._version = 0
        self._requests: dict[str, _Request] = {}
        self._model: Any = None
        self._renderer: PromptRenderer | None = None

    @property
    def served_version(self) -> int:
        """Version that makes the next token."""
        return self._version

    async def start(self) -> None:
        """Load the base model as version 0."""
        await self._in_worker(self._load_base)

    def progress(self, request_id: str) -> tuple[int, ...]:
        """Tokens made so far by each sample of a request in flight, in order of index."""
        return tuple(sample.num_tokens for sample in self._requests[request_id].samples)

    async def look(self, prompt: Prompt) -> tuple[PromptImage, ...]:
        """See ``ports.RolloutEngine.look``."""
        return await asyncio.to_thread(self._rendering.look, prompt)

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncGenerator[Completion | PartialCompletion, None]:
        """See ``ports.RolloutEngine.generate``."""
        renderer = self._rendering
        tokens = renderer.render(prompt, self._rollout.max_prompt_tokens, images)
        begun = PartialCompletion.all_of(sampling) if begun is None else begun
        samples = [self._new_sample(sampling, one) for one in begun]
        lengths = sorted({sample.num_tokens for sample in samples})
        batches = [_Batch([s for s in samples if s.num_tokens == length]) for length in lengths]
        first = position_behind(renderer.family, tokens, images)
        request = _Request(tokens, sampling, samples, batches, images, first)
        self._requests[request_id] = request
        try:
            while request.batches:
                async with self._turn:
                    if request.is_interrupted:
                        break
                    finished = await self._in_worker(lambda: self._step(request))
                for sample in finished:
                    yield self._completion(request, sample)
            for sample in samples:
                if sample.finish_reason is None:
                    yield sample.so_far()
        finally:
            del self._requests[request_id]

    async def interrupt(self, request_id: str) -> None:
        """See ``ports.RolloutEngine.interrupt``. A paused engine ends the request on ``resume``."""
        if (request := self._requests.get(request_id)) is not None:
            request.is_interrupted = True

    async def pause(self) -> None:
        """See ``ports.RolloutEngine.pause``."""
        await self._turn.acquire()
        self._is_paused = True

    async def load(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        """See ``ports.RolloutEngine.load``. A tensor that the model does not have, or has in
        another shape, is a ``ValueError``; the old version is served then too."""
        if not self._is_paused:
            raise RuntimeError("load() needs a paused engine")
        await self._in_worker(lambda: self._replace(manifest, tensors))
        self._version = manifest.version
        if self._rollout.kv_on_update == "recompute":
            for batch in (b for request in self._requests.values() for b in request.batches):
                batch.cache = None

    async def resume(self) -> None:
        """See ``ports.RolloutEngine.resume``."""
        if self._is_paused:
            self._is_paused = False
            self._turn.release()

    def limits(self) -> EngineProfile:
        """See ``ports.RolloutEngine.limits``. The cache is a model of one: what the memory that the
        config gives to a CPU's cache would hold."""
        model = self._model.config.get_text_config()
        heads = getattr(model, "num_key_value_heads", None) or model.num_attention_heads
        width = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
        num_bytes = 2 * model.num_hidden_layers * heads * width * self._model.dtype.itemsize
        return EngineProfile(
            kv_tokens=int(self._rollout.vllm.cpu_kv_cache_gib * 2**30 / num_bytes),
            max_sequences=self._rollout.vllm.max_num_seqs,
        )

    def occupancy(self) -> EngineLoad:
        """See ``ports.RolloutEngine.occupancy``. Samples beyond ``max_sequences`` take their turns
        like all others, but count as waiting: more of them make nothing faster."""
        requests = self._requests.values()
        alive = [sample for r in requests for batch in r.batches for sample in batch.alive]
        held = sum(r.prompt.size for r in requests) + sum(sample.num_tokens for sample in alive)
        limits = self.limits()
        running = min(len(alive), limits.max_sequences)
        return EngineLoad(
            kv_share=min(1.0, held / limits.kv_tokens),
            running=running,
            waiting=len(alive) - running,
            preemptions=0,
        )

    async def close(self) -> None:
        """End the worker thread after the step in progress."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = None

    @property
    def _rendering(self) -> PromptRenderer:
        if self._renderer is None:
            raise RuntimeError("the engine is not started")
        return self._renderer

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _load_base(self) -> None:
        torch.set_num_threads(self._threads)
        require_folder(self._config.path)
        self._renderer = PromptRenderer.from_config(self._config)
        self._model = (
            model_class(self._config.path)
            .from_pretrained(self._config.path, dtype=getattr(torch, self._config.dtype), **LOCAL)
            .eval()
        )

    def _new_sample(self, sampling: Sampling, begun: PartialCompletion) -> _Sample:
        seed = begun.seed(sampling)
        seed = self._seeds.getrandbits(63) if seed is None else seed
        return _Sample(begun=begun, generator=torch.Generator().manual_seed(seed))

    @torch.inference_mode()
    def _step(self, request: _Request) -> list[_Sample]:
        """One token for every unfinished sample; returns those that finished with it."""
        finished = []
        for batch in request.batches:
            logits = self._forward(request, batch)
            for row, sample in zip(logits, batch.alive, strict=True):
                self._draw(row, sample, request.sampling)
            rows = [k for k, sample in enumerate(batch.alive) if sample.finish_reason is None]
            if len(rows) < len(batch.alive):
                finished += [s for s in batch.alive if s.finish_reason is not None]
                batch.alive = [batch.alive[k] for k in rows]
                batch.cache.batch_select_indices(torch.tensor(rows, dtype=torch.long))
        request.batches = [batch for batch in request.batches if batch.alive]
        return finished

    def _forward(self, request: _Request, batch: _Batch) -> torch.Tensor:
        """Logits [alive, vocabulary] of the next token, in float32."""
        family, made = self._rendering.family, batch.alive[0].num_tokens
        if batch.cache is not None:
            last = torch.tensor([sample.tokens[-1:] for sample in batch.alive])
            place = request.first_position + made - 1
            return self._next_logits(later_inputs(family, self._model, last, place), batch.cache)
        batch.cache = DynamicCache(config=self._model.config)
        prompt = request.prompt.tolist()
        rows = [prompt + sample.all_tokens for sample in batch.alive] if made else [prompt]
        inputs = whole_inputs(
            family, self._model, torch.tensor(rows), request.prompt, request.images
        )
        logits = self._next_logits(inputs, batch.cache)
        if made:
            return logits
        batch.cache.batch_repeat_interleave(len(batch.alive))
        return logits.expand(len(batch.alive), -1)

    def _next_logits(self, inputs: dict[str, Any], cache: Any) -> torch.Tensor:
        outputs = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = outputs.logits[:, -1].float()
        return logits

    def _draw(self, logits: torch.Tensor, sample: _Sample, sampling: Sampling) -> None:
        logprobs = log_distribution(logits, sampling.temperature, sampling.top_p)
        if sampling.temperature == 0:
            token = int(logprobs.argmax())
        else:
            token = int(torch.multinomial(logprobs.exp(), 1, generator=sample.generator))
        sample.tokens.append(token)
        sample.logprobs.append(float(logprobs[token]))
        sample.versions.append(self._version)
        if token in self._rendering.stop_ids:
            sample.finish_reason = "stop"
        elif sample.num_tokens == sampling.max_new_tokens:
            sample.finish_reason = "length"

    def _completion(self, request: _Request, sample: _Sample) -> Completion:
        assert sample.finish_reason is not None
        whole = sample.so_far()
        text = self._rendering.decode(whole.tokens)
        return whole.finished(request.prompt, text, sample.finish_reason)

    @torch.no_grad()
    def _replace(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        """Check all shapes, then copy into the live parameters."""
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for spec in manifest.tensors:
            found = parameters.get(spec.name)
            if found is None or tuple(found.shape) != spec.shape:
                shape = None if found is None else tuple(found.shape)
                raise ValueError(f"{spec.name} has shape {spec.shape}, in the model {shape}")
        for spec in manifest.tensors:
            # A copy, because torch wants writable memory and a store's memory is not.
            flat = torch.from_numpy(tensors[spec.name].copy()).view(getattr(torch, spec.dtype))
            parameters[spec.name].copy_(flat.reshape(spec.shape))


def log_distribution(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Natural log of what is sampled from, [V]: softmax(logits / temperature), cut to the smallest
    set of tokens whose probability reaches ``top_p`` and renormalized (Holtzman et al. 2020,
    arXiv 1904.09751). Temperature 0 stands for 1 here."""
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if top_p == 1.0:
        return logprobs
    ordered, order = logprobs.exp().sort(descending=True)
    is_cut = ordered.cumsum(0) - ordered >= top_p
    cut = logprobs.masked_fill(torch.zeros_like(is_cut).scatter(0, order, is_cut), -torch.inf)
    return torch.log_softmax(cut, dim=-1)
