"""Qwen2.5-VL (arXiv 2502.13923): one grid of patches for each image, three axes of positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safeladder.errors import ConfigError
from safeladder.images import Pixels, PromptImage
from safeladder.records import Tokens
from vision.family import FAMILIES, Positions
from vision.reading import BadImageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Qwen25VL:
    """``vision.family.VisionFamily``. The image processor is the one on PIL, everywhere: what an
    engine is shown and what the learner is shown must not differ by a resampling filter."""

    frozen = FAMILIES["qwen2_5_vl"]

    def __init__(self, path: Path, min_pixels: int | None, max_pixels: int | None) -> None:
        from transformers import AutoConfig
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        config = AutoConfig.from_pretrained(path, local_files_only=True)
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
        size = dict(self._processor.size)
        self._min_pixels = min_pixels or size["shortest_edge"]
        self._max_pixels = max_pixels or size["longest_edge"]
        self._patch, self._merge = self._processor.patch_size, self._processor.merge_size
        token = (self._patch * self._merge) ** 2
        if not self._min_pixels <= self._max_pixels or self._max_pixels < token:
            raise ConfigError(
                f"model.image_max_pixels: {self._max_pixels} is below image_min_pixels: "
                f"{self._min_pixels}, or below the {token} pixels of one token; set both, the "
                "larger one last"
            )
        self.slot = "<|image_pad|>"
        self.image_token_id: int = config.image_token_id

    def fit(self, image: Image) -> Pixels:
        """See ``VisionFamily.fit``."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        factor = self._patch * self._merge
        width, height = image.size
        try:
            rows, columns = smart_resize(height, width, factor, self._min_pixels, self._max_pixels)
        except ValueError as error:
            raise BadImageError(f"an image of {width}x{height} pixels: {error}") from None
        resized = image.resize((columns, rows), self._processor.resample)
        return np.asarray(resized, dtype=np.uint8)[None]

    def num_tokens(self, pixels: Pixels) -> int:
        """See ``VisionFamily.num_tokens``."""
        rows, columns = self._merged(pixels)
        return rows * columns

    def expand(self, pixels: Pixels) -> list[int]:
        """See ``VisionFamily.expand``."""
        return [self.image_token_id] * self.num_tokens(pixels)

    def positions(self, tokens: Tokens, images: Sequence[PromptImage]) -> Positions:
        """See ``VisionFamily.positions``: time, row and column (the model's ``get_rope_index``).
        Text advances all three; an image's tokens share a time, and the text behind them begins
        after its longer side."""
        parts, start, done = [], 0, 0
        starts = iter(np.flatnonzero(tokens == self.image_token_id))
        for image in images:
            first = next(place for place in starts if place >= done)
            parts.append(np.tile(np.arange(first - done) + start, (3, 1)))
            start += first - done
            rows, columns = self._merged(image.pixels)
            grid = np.indices((1, rows, columns)).reshape(3, -1)
            parts.append(grid + start)
            start += max(rows, columns)
            done = first + rows * columns
        parts.append(np.tile(np.arange(tokens.size - done) + start, (3, 1)))
        placed: Positions = np.concatenate(parts, axis=1).astype(np.int32)
        return placed

    def tensors(self, images: Sequence[PromptImage]) -> dict[str, Tensor]:
        """See ``VisionFamily.tensors``: ``pixel_values`` [patches, values] of all images and
        ``image_grid_thw`` [images, 3]."""
        inputs = self._processor(
            [image.pixels[0] for image in images], do_resize=False, return_tensors="pt",
            input_data_format="channels_last",
        )  # fmt: skip
        return dict(inputs)

    def _merged(self, pixels: Pixels) -> tuple[int, int]:
        """Rows and columns of features."""
        _, height, width, _ = pixels.shape
        factor = self._patch * self._merge
        return height // factor, width // factor
