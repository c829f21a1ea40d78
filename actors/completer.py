"""Greedy text completion and label log-probs in this process: the engine of a judge.

Owns one frozen chat model. Knows nothing of rollouts, versions or what the text is judged for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.context_limit import context_tokens, too_long
from actors.label_logprobs import LabelReader
from actors.local_model import LOCAL, require_folder
from actors.rendering import PromptRenderer
from rewards.judging import UnjudgedError
from safeladder.records import Message, Tokens


class TransformersCompleter:
    """Answers conversations greedily with a plain Hugging Face model.

    The model is loaded with the first call. All work happens in one thread, so the event loop
    stays free and calls are answered in order. A conversation that with its reply is longer than
    the model's context, or than ``max_model_tokens``, is not answered: nothing is cut.
    """

    def __init__(
        self,
        path: Path | str,
        dtype: str = "float32",
        threads: int = 1,
        max_model_tokens: int | None = None,
    ) -> None:
        self._path = Path(path)
        self._dtype = dtype
        self._threads = threads
        self._max_model_tokens = max_model_tokens
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completer")
        self._model: Any = None
        self._limit: int | None = None
        self._renderer: PromptRenderer | None = None
        self._reader: LabelReader | None = None

    async def complete(
        self, messages: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[str | UnjudgedError]:
        """See ``rewards.completers.Completer.complete``."""
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._complete, messages, max_tokens)

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> list[list[float] | UnjudgedError]:
        """See ``rewards.completers.LabelCompleter.label_logprobs``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._price, conversations, labels)

    async def close(self) -> None:
        """End the worker thread and drop the model."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = self._reader = None

    def _complete(
        self, messages: Sequence[Sequence[Message]], max_tokens: int
    ) -> list[str | UnjudgedError]:
        renderer = self._load()
        prompts = [renderer.render_messages(tuple(turns)) for turns in messages]
        faults = [too_long(prompt, max_tokens, self._limit) for prompt in prompts]
        fitting = [p for p, fault in zip(prompts, faults, strict=True) if fault is None]
        replies = iter(self._generate(renderer, fitting, max_tokens) if fitting else ())
        return [next(replies) if fault is None else fault for fault in faults]

    @torch.inference_mode()
    def _generate(
        self, renderer: PromptRenderer, prompts: Sequence[Tokens], max_tokens: int
    ) -> list[str]:
        width = max(prompt.size for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)  # padded on the left
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - prompt.size :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, width - prompt.size :] = 1
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(renderer.stop_ids),
            pad_token_id=renderer.stop_ids[0],
        )
        return [renderer.decode(row.numpy()) for row in output[:, width:]]

    def _price(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> list[list[float] | UnjudgedError]:
        renderer = self._load()
        assert self._reader is not None
        tokens = [renderer.encode_label(label) for label in labels]
        longest = max(label.size for label in tokens)
        found: list[list[float] | UnjudgedError] = []
        for turns in conversations:
            prompt = renderer.render_messages(tuple(turns))
            fault = too_long(prompt, longest, self._limit)
            found.append(self._reader.price(prompt, tokens) if fault is None else fault)
        return found

    def _load(self) -> PromptRenderer:
        if self._renderer is None:
            torch.set_num_threads(self._threads)
            require_folder(self._path)
            self._model = AutoModelForCausalLM.from_pretrained(
                self._path, dtype=getattr(torch, self._dtype), **LOCAL
            ).eval()
            self._limit = context_tokens(self._model.config, self._max_model_tokens)
            self._reader = LabelReader(self._model)
            self._renderer = PromptRenderer(self._path)
        return self._renderer
