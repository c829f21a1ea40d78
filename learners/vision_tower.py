"""What a packed row shows: positions on the family's axes, and features in the place of images.

Owns the frozen vision tower, which is asked without a gradient and once for each image, whoever of
its siblings is trained where. It is no part of what ZeRO shards: each rank holds it whole, so
that rows without images need no collective operation to keep pace with rows that have some.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.packing import PackedRow
from safeladder.images import PromptImage
from vision.family import Positions, VisionFamily, features, image_places

MAX_FEATURE_BYTES = 256 * 2**20
"""Features that are kept for later epochs and for siblings in other rows."""


class FrozenVision:
    """The tower of one policy, taken out of ``model``, a Hugging Face model with its output
    layer."""

    def __init__(self, family: VisionFamily, model: Any) -> None:
        self._family = family
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        inner = model.model
        self.tower: nn.Module = copy.copy(inner)
        """``model.model`` with nothing in it but what sees, under the names that it had."""
        self.tower._modules = {name: inner._modules.pop(name) for name in family.frozen}
        self.tower.requires_grad_(False).eval()

    def positions(self, row: PackedRow) -> Positions:
        """[axes, L] position ids, or [L] for a single axis: those of each prompt with its images,
        and of each completion as if it alone stood behind them."""
        parts: list[Positions] = []
        starts = np.cumsum([0, *(span.length for span in row.spans)])
        behind: dict[int, int] = {}
        for index, span in enumerate(row.spans):
            own = slice(int(starts[index]), int(starts[index + 1]))
            if span.prompt == index:
                placed = self._family.positions(row.tokens[own], row.images.get(index, ()))
                behind[index] = int(placed.max()) + 1
            else:
                first = behind[span.prompt]
                steps = np.arange(first, first + span.length, dtype=np.int32)
                placed = np.broadcast_to(steps, (len(parts[0]), span.length))
            parts.append(placed)
        placed = np.concatenate(parts, axis=1)
        return placed if len(placed) > 1 else placed[0]

    def places(self, row: PackedRow) -> npt.NDArray[np.intp]:
        """[K] tokens of the row whose embeddings are features: in prompts only."""
        starts = np.cumsum([0, *(span.length for span in row.spans)])
        found = [
            starts[index] + image_places(self._family, row.tokens[starts[index] :][: span.length])
            for index, span in enumerate(row.spans)
            if index in row.images
        ]
        return np.concatenate([np.empty(0, np.intp), *found])

    def features(self, row: PackedRow) -> Tensor | None:
        """[K, H] features in the order of ``places``; None for a row without images."""
        shown = [image for index in sorted(row.images) for image in row.images[index]]
        if not shown:
            return None
        missing = {i.identity: i for i in shown if i.identity not in self._kept}
        fresh = self._see(list(missing.values()))
        found = [self._kept[i.identity] if i.identity in self._kept else fresh[i.identity]
                 for i in shown]  # fmt: skip
        self._keep(fresh)
        return torch.cat(found)

    def to(self, device: torch.device | str) -> None:
        """Move the tower, which nobody else moves."""
        self.tower.to(device)

    def _see(self, images: list[PromptImage]) -> dict[str, Tensor]:
        if not images:
            return {}
        seen = features(self._family, SimpleNamespace(model=self.tower), images)
        parts = torch.split(seen, [image.num_tokens for image in images])
        return {image.identity: part for image, part in zip(images, parts, strict=True)}

    def _keep(self, fresh: dict[str, Tensor]) -> None:
        """The newest, as far as they fit."""
        self._kept |= {identity: part.clone() for identity, part in fresh.items()}
        while sum(part.nbytes for part in self._kept.values()) > MAX_FEATURE_BYTES:
            self._kept.popitem(last=False)
