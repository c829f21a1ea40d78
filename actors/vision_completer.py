"""Greedy replies and label log-probs of a vision-language model in this process.

Owns one frozen Qwen2.5-VL model. Conversations are read one after the other, each label with a
forward pass of its own. Knows nothing of what is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from actors.context_limit import context_tokens, too_long
from actors.image_prompts import ImagePrompts
from actors.local_model import LOCAL, require_folder
from actors.rendering import PromptRenderer
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, Message
from vision.reading import BadImageError


class VisionCompleter:
    """Answers conversations with or without images, with a plain Hugging Face model.

    ``max_pixels`` bounds each image before it is decoded. An image that is none, and a conversation
    that does not fit into the model's context, have an ``UnjudgedError`` (abstain) in the place of
    their answer. The model is loaded with the first call.
    """

    reads_images = True

    def __init__(
        self,
        path: Path | str,
        dtype: str = "float32",
        threads: int = 1,
        max_pixels: int = 16_000_000,
    ) -> None:
        self._path = Path(path)
        self._dtype = dtype
        self._threads = threads
        self._max_pixels = max_pixels
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completer")
        self._model: Any = None
        self._limit: int | None = None
        self._prompts: ImagePrompts | None = None
        self._renderer: PromptRenderer | None = None

    async def complete(
        self,
        messages: Sequence[Sequence[Message]],
        max_tokens: int,
        images: Sequence[Sequence[bytes]] = (),
    ) -> list[str | UnjudgedError]:
        """See ``rewards.completers.ImageCompleter.complete``."""
        return [
            await self._work(self._reply, turns, shown, max_tokens)
            for turns, shown in _paired(messages, images)
        ]

    async def label_logprobs(
        self,
        conversations: Sequence[Sequence[Message]],
        labels: Sequence[str],
        images: Sequence[Sequence[bytes]] = (),
    ) -> list[list[float] | UnjudgedError]:
        """See ``rewards.completers.ImageCompleter.label_logprobs``."""
        return [
            await self._work(self._price, turns, shown, labels)
            for turns, shown in _paired(conversations, images)
        ]

    async def close(self) -> None:
        """End the worker thread and drop the model."""
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)
        self._model = None

    async def _work(self, function: Any, *arguments: Any) -> Any:
        """What ``function`` finds about one conversation, or the ``UnjudgedError`` it raises: in
        its place, so that the others of its batch are not read again."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, function, *arguments)
        except UnjudgedError as error:
            return error

    @torch.inference_mode()
    def _reply(self, turns: Sequence[Message], images: Sequence[bytes], max_tokens: int) -> str:
        inputs, renderer = self._render(turns, images, max_tokens)
        output = self._model.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(renderer.stop_ids),
            pad_token_id=renderer.stop_ids[0],
        )
        return renderer.decode(output[0, inputs["input_ids"].shape[1] :].numpy())

    @torch.inference_mode()
    def _price(
        self, turns: Sequence[Message], images: Sequence[bytes], labels: Sequence[str]
    ) -> list[float]:
        renderer = self._load()[1]
        tokens = [torch.from_numpy(renderer.encode_label(label)).long() for label in labels]
        inputs, _ = self._render(turns, images, max(map(len, tokens)))
        return [self._price_label(inputs, label) for label in tokens]

    def _price_label(self, inputs: dict[str, Any], label: torch.Tensor) -> float:
        """Natural log-prob of the tokens ``label`` [T], in order, right after the prompt."""
        behind = {
            "input_ids": label,
            "attention_mask": torch.ones_like(label),
            "mm_token_type_ids": torch.zeros_like(label),
        }
        longer = inputs | {
            name: torch.cat([inputs[name], more[None].to(inputs[name].dtype)], 1)
            for name, more in behind.items()
        }
        logits = self._model(**longer, logits_to_keep=len(label) + 1).logits[0, :-1]  # [T, V]
        prices = logits.float().log_softmax(-1).gather(1, label[:, None])
        return float(prices.sum())

    def _render(
        self, turns: Sequence[Message], images: Sequence[bytes], num_more: int
    ) -> tuple[dict[str, Any], PromptRenderer]:
        """The model's inputs, with room for ``num_more`` tokens behind them."""
        prompts, renderer = self._load()
        try:
            inputs = prompts.render(turns, images)
        except BadImageError as error:
            raise UnjudgedError(InvalidCause.ABSTAIN, str(error)) from error
        fault = too_long(inputs["input_ids"][0].numpy(), num_more, self._limit)
        if fault is not None:
            raise fault
        return inputs, renderer

    def _load(self) -> tuple[ImagePrompts, PromptRenderer]:
        if self._prompts is None or self._renderer is None:
            torch.set_num_threads(self._threads)
            require_folder(self._path)
            self._model = AutoModelForImageTextToText.from_pretrained(
                self._path, dtype=getattr(torch, self._dtype), **LOCAL
            ).eval()
            self._limit = context_tokens(self._model.config)
            self._prompts = ImagePrompts(self._path, self._max_pixels)
            self._renderer = PromptRenderer(self._path)
        return self._prompts, self._renderer


def _paired(
    conversations: Sequence[Sequence[Message]], images: Sequence[Sequence[bytes]]
) -> Iterator[tuple[Sequence[Message], Sequence[bytes]]]:
    return zip(conversations, images or [()] * len(conversations), strict=True)
