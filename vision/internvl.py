"""InternVL3 in transformers' own layout (arXiv 2504.10479): square tiles of one size, ordinary
positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safeladder.errors import ConfigError
from safeladder.images import Pixels, PromptImage
from safeladder.records import Tokens
from vision.family import FAMILIES, Positions

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class InternVL:
    """``vision.family.VisionFamily``. An image is cut into at most ``max_patches`` tiles, with a
    thumbnail behind them if there is more than one."""

    frozen = FAMILIES["internvl"]

    def __init__(self, path: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            GotOcr2ImageProcessorPil,
        )

        config = AutoConfig.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self._processor: Any = GotOcr2ImageProcessorPil.from_pretrained(path, local_files_only=True)
        self._tokens_per_tile: int = config.image_seq_length
        self.image_token_id: int = config.image_token_id
        self.slot: str = tokenizer.convert_ids_to_tokens(self.image_token_id)
        self._bounds = [
            tokenizer.convert_tokens_to_ids(getattr(tokenizer, name, None) or default)
            for name, default in (("start_image_token", "<img>"), ("end_image_token", "</img>"))
        ]
        if None in self._bounds:
            raise ConfigError(
                f"model {path}: the tokenizer has no <img> and </img>, which stand around an image"
            )

    def fit(self, image: Image) -> Pixels:
        """See ``VisionFamily.fit``."""
        cut = self._processor(
            [image], crop_to_patches=True, do_rescale=False, do_normalize=False,
            return_tensors="np",
        )  # fmt: skip
        tiles = np.stack(list(cut["pixel_values"]))  # [tiles, 3, height, width]
        return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1).astype(np.uint8))

    def num_tokens(self, pixels: Pixels) -> int:
        """See ``VisionFamily.num_tokens``."""
        return len(pixels) * self._tokens_per_tile

    def expand(self, pixels: Pixels) -> list[int]:
        """See ``VisionFamily.expand``."""
        first, last = self._bounds
        return [first, *[self.image_token_id] * self.num_tokens(pixels), last]

    def positions(self, tokens: Tokens, images: Sequence[PromptImage]) -> Positions:
        """See ``VisionFamily.positions``: one axis, which counts."""
        return np.arange(tokens.size, dtype=np.int32)[None]

    def tensors(self, images: Sequence[PromptImage]) -> dict[str, Tensor]:
        """See ``VisionFamily.tensors``: ``pixel_values`` [tiles, 3, height, width]."""
        tiles = [tile for image in images for tile in image.pixels]
        inputs = self._processor(
            tiles, crop_to_patches=False, do_resize=False, return_tensors="pt",
            input_data_format="channels_last",
        )  # fmt: skip
        return {"pixel_values": inputs["pixel_values"]}
