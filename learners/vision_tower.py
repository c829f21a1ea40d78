"""What a packed row shows: positions on the family's axes, and features in the place of images.

Owns the frozen vision tower, which is asked without a gradient and once for each image, whoever of
its siblings is trained where. It stays out of ZeRO's shards: each rank holds it whole, so that rows
without images need no collective operation to keep pace with rows that have some.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
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
    """The tower of one policy. ``model`` is a Hugging Face model with its output layer."""

    def __init__(self, family: VisionFamily, model: Any) -> None:
        self._family = family
        self._model = model
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        for module in self._modules().values():
            module.requires_grad_(False)

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
        for module in self._modules().values():
            module.to(device).eval()

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """The model without its tower, as long as it is being sharded."""
        modules = self._modules()
        for name in modules:
            delattr(self._model.model, name)
        try:
            yield
        finally:
            for name, module in modules.items():
                setattr(self._model.model, name, module)

    def _modules(self) -> dict[str, nn.Module]:
        return {name: getattr(self._model.model, name) for name in self._family.frozen}

    def _see(self, images: list[PromptImage]) -> dict[str, Tensor]:
        if not images:
            return {}
        seen = features(self._family, self._model, images)
        parts = torch.split(seen, [image.num_tokens for image in images])
        return {image.identity: part for image, part in zip(images, parts, strict=True)}

    def _keep(self, fresh: dict[str, Tensor]) -> None:
        """The newest, as far as they fit."""
        self._kept |= {identity: part.clone() for identity, part in fresh.items()}
        while sum(part.nbytes for part in self._kept.values()) > MAX_FEATURE_BYTES:
            self._kept.popitem(last=False)
