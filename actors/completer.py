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

from actors.label_logprobs import LabelReader
from actors.local_model import LOCAL, require_folder
from actors.rendering import PromptRenderer
from safeladder.records import Message


class TransformersCompleter:
    """Answers conversations greedily with a plain Hugging Face model.

    The model is loaded with the first call. All work happens in one thread, so the event loop
    stays free and calls are answered in order.
    """

    def __init__(self, path: Path | str, dtype: str = "float32", threads: int = 1) -> None:
        self._path = Path(path)
        self._dtype = dtype
        self._threads = threads
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completer")
        self._model: Any = None
        self._renderer: PromptRenderer | None = None
        self._reader: LabelReader | None = None

    async def complete(self, messages: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """One answer of at most ``max_tokens`` tokens for each conversation, in order."""
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._complete, messages, max_tokens)

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> list[list[float]]:
        """See ``rewards.completers.LabelCompleter.label_logprobs``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._price, conversations, labels)

    async def close(self) -> None:
        """End the worker thread and drop the model."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = self._reader = None

    @torch.inference_mode()
    def _complete(self, messages: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        renderer = self._load()
        prompts = [renderer.render_messages(tuple(turns)) for turns in messages]
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
    ) -> list[list[float]]:
        renderer = self._load()
        assert self._reader is not None
        tokens = [renderer.encode_label(label) for label in labels]
        return [
            self._reader.price(renderer.render_messages(tuple(turns)), tokens)
            for turns in conversations
        ]

    def _load(self) -> PromptRenderer:
        if self._renderer is None:
            torch.set_num_threads(self._threads)
            require_folder(self._path)
            self._model = AutoModelForCausalLM.from_pretrained(
                self._path, dtype=getattr(torch, self._dtype), **LOCAL
            ).eval()
            self._reader = LabelReader(self._model)
            self._renderer = PromptRenderer(self._path)
        return self._renderer
