"""Text completion and label log-probs on vLLM: the engine of a large judge.

Owns one frozen chat model in vLLM's child processes. Knows nothing of rollouts, versions or what
the text is judged for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from actors.context_limit import too_long
from actors.rendering import PromptRenderer
from actors.vllm_processes import child_environment
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, Message, Tokens

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

GIB = 2**30
T = TypeVar("T")


class VllmCompleter:
    """Answers conversations greedily with vLLM; the model is loaded with the first call.

    A conversation that with its reply is longer than ``max_model_tokens`` is not answered.
    ``cpu_kv_cache_gib`` counts in the CPU build, ``gpu_memory_utilization`` elsewhere.
    """

    def __init__(
        self,
        path: Path | str,
        dtype: str = "bfloat16",
        max_model_tokens: int = 4096,
        max_num_seqs: int = 64,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        cpu_kv_cache_gib: float = 1.0,
    ) -> None:
        self._path = Path(path)
        self._max_model_tokens = max_model_tokens
        self._engine_args: dict[str, Any] = {
            "model": str(path),
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "max_model_len": max_model_tokens,
            "max_num_seqs": max_num_seqs,
            "tensor_parallel_size": tensor_parallel_size,
            "distributed_executor_backend": "uni" if tensor_parallel_size == 1 else "mp",
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
            "disable_log_stats": True,
        }
        self._cpu_kv_cache_bytes = int(cpu_kv_cache_gib * GIB)
        self._names = itertools.count()
        self._loading = asyncio.Lock()
        self._llm: AsyncLLM | None = None
        self._renderer: PromptRenderer | None = None

    async def complete(
        self, messages: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[str | UnjudgedError]:
        """See ``rewards.completers.Completer.complete``."""
        llm, renderer = await self._load()
        return await _each(self._reply(llm, renderer, turns, max_tokens) for turns in messages)

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> list[list[float] | UnjudgedError]:
        """See ``rewards.completers.LabelCompleter.label_logprobs``. Each label is read as part of
        a prompt of its own, which vLLM prices token by token."""
        llm, renderer = await self._load()
        tokens = [renderer.encode_label(label) for label in labels]
        return await _each(self._prices(llm, renderer, turns, tokens) for turns in conversations)

    async def close(self) -> None:
        """End all child processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            if llm.output_handler is not None:  # else it reports the core's end as a failure
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown)

    async def _reply(
        self, llm: AsyncLLM, renderer: PromptRenderer, turns: Sequence[Message], max_tokens: int
    ) -> str:
        prompt = self._fitting(renderer, turns, max_tokens)
        stops = list(renderer.stop_ids)
        output = await self._ask(llm, prompt, max_tokens, stop_token_ids=stops)
        return renderer.decode(np.asarray(output.outputs[0].token_ids, np.int32))

    async def _prices(
        self,
        llm: AsyncLLM,
        renderer: PromptRenderer,
        turns: Sequence[Message],
        labels: Sequence[Tokens],
    ) -> list[float]:
        longest = max(label.size for label in labels)
        prompt = self._fitting(renderer, turns, longest + 1)  # vLLM generates one token at least
        return await asyncio.gather(*(self._price(llm, prompt, label) for label in labels))

    def _fitting(
        self, renderer: PromptRenderer, turns: Sequence[Message], num_following: int
    ) -> Tokens:
        prompt = renderer.render_messages(tuple(turns))
        if (fault := too_long(prompt, num_following, self._max_model_tokens)) is not None:
            raise fault
        return prompt

    async def _price(self, llm: AsyncLLM, prompt: Tokens, label: Tokens) -> float:
        ids = np.concatenate([prompt, label])
        output = await self._ask(llm, ids, 1, prompt_logprobs=0)
        assert output.prompt_logprobs is not None
        priced = list(output.prompt_logprobs)[prompt.size :]
        prices = [at[int(t)].logprob for at, t in zip(priced, label, strict=True) if at]
        if len(prices) != label.size:
            raise RuntimeError(f"vLLM priced {len(prices)} of a label's {label.size} tokens")
        return float(sum(prices))

    async def _ask(
        self, llm: AsyncLLM, prompt: Tokens, max_tokens: int, **options: Any
    ) -> RequestOutput:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0, max_tokens=max_tokens, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY, **options,
        )  # fmt: skip
        name = f"judge-{next(self._names)}"
        async for output in llm.generate(tokens_input(prompt.tolist()), params, name):
            if output.finished:
                return output
        raise RuntimeError(f"vLLM ended {name} without an answer")

    async def _load(self) -> tuple[AsyncLLM, PromptRenderer]:
        async with self._loading:
            if self._llm is None or self._renderer is None:
                self._renderer = await asyncio.to_thread(PromptRenderer, self._path)
                self._llm = await asyncio.to_thread(self._launch)
            return self._llm, self._renderer

    def _launch(self) -> AsyncLLM:
        with child_environment(enforce_eager=True):
            from vllm import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.async_llm import AsyncLLM

            cache: dict[str, int] = {}
            if current_platform.is_cpu():
                cache["kv_cache_memory_bytes"] = self._cpu_kv_cache_bytes
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._engine_args, **cache))


async def _each(asked: Iterable[Awaitable[T]]) -> list[T | UnjudgedError]:
    """All answers; what fails does so alone."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    return [_failure(one) if isinstance(one, BaseException) else one for one in found]


def _failure(error: BaseException) -> UnjudgedError:
    if isinstance(error, UnjudgedError):
        return error
    return UnjudgedError(InvalidCause.ERROR, f"{type(error).__name__}: {error}")
