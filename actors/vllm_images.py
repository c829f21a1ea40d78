"""A rendered prompt as vLLM's engine takes it, with the pixels of its images.

vLLM could read images itself. It is given finished pixels and token ids instead, so that engine,
reference and learner see exactly the same: image processors differ by their resampling filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from safeladder.images import PromptImage
from safeladder.records import Tokens
from vision.family import VisionFamily

if TYPE_CHECKING:
    from vllm.inputs import EngineInput


@dataclass(frozen=True, slots=True)
class Shown:
    """The images of one prompt, made once for all its samples."""

    items: Any
    """vLLM's ``MultiModalKwargsItems``: tensors, cut into those of each image."""
    hashes: list[str]
    """By these vLLM's caches know an image, so siblings share what the tower made of it."""
    ranges: list[Any]
    """Where each image's features stand in the prompt."""


def show(
    prompt: Tokens, images: Sequence[PromptImage], family: VisionFamily | None
) -> Shown | None:
    """The images of a rendered prompt [P] for vLLM; None for text. Works for tens of milliseconds:
    call it in a thread."""
    if not images or family is None:
        return None
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    ranges, start = [], 0
    for image in images:
        start += int(np.argmax(prompt[start:] == family.image_token_id))
        ranges.append(PlaceholderRange(offset=start, length=image.num_tokens))
        start += image.num_tokens
    items = MultiModalKwargsItems.from_hf_inputs(*_fields(family, images))
    return Shown(items, [image.identity for image in images], ranges)


def engine_input(tokens: list[int], shown: Shown | None, salt: str) -> EngineInput:
    """What ``AsyncLLM.add_request`` takes: a rendered prompt, and tokens that follow it."""
    from vllm.inputs import mm_input, tokens_input

    if shown is None:
        return tokens_input(tokens, cache_salt=salt)
    placed = ({"image": shown.hashes}, {"image": shown.ranges})
    return mm_input(tokens, shown.items, *placed, cache_salt=salt)


def _fields(
    family: VisionFamily, images: Sequence[PromptImage]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of all images under vLLM's names, and how they are cut into those of each."""
    import torch
    from vllm.multimodal.inputs import MultiModalFieldConfig

    inputs: dict[str, Any] = dict(family.tensors(images))
    each = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
    if "image_grid_thw" in inputs:  # rows of pixel values are patches
        sizes = inputs["image_grid_thw"].prod(-1)
        fields = {"image_grid_thw": each}
    else:  # they are tiles
        sizes = inputs["image_num_patches"] = torch.tensor([len(i.pixels) for i in images])
        inputs["image_token_id"] = torch.tensor(family.image_token_id)
        shared = MultiModalFieldConfig.shared("image", len(images), keep_on_cpu=True)
        fields = {"image_num_patches": each, "image_token_id": shared}
    return inputs, {
        "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", sizes), **fields,
    }  # fmt: skip
