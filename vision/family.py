"""What is specific to one family of vision-language models, behind one small port.

A family says how an image becomes pixels, how many tokens it takes in the prompt, where tokens
stand for the position embedding, and how the frozen vision tower is asked. Everything else
(rollout, reference, packing, training) is the same for all of them and for text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from safeladder.errors import ConfigError
from safeladder.images import Pixels, PromptImage
from safeladder.paths import PathError, read_bytes
from safeladder.records import Tokens
from vision.reading import BadImageError, decode_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Positions = npt.NDArray[np.int32]
FAMILIES = {"internvl": ("vision_tower", "multi_modal_projector"), "qwen2_5_vl": ("visual",)}
"""``model_type`` of each, and its ``VisionFamily.frozen``."""


class VisionFamily(Protocol):
    """How one family sees."""

    @property
    def slot(self) -> str:
        """Text that a chat template puts where an image stands, one token of the vocabulary."""
        ...

    @property
    def image_token_id(self) -> int:
        """Token whose embedding is replaced by a feature of the image."""
        ...

    @property
    def frozen(self) -> tuple[str, ...]:
        """Modules of ``model.model`` that are not trained: the vision tower and what follows."""
        ...

    def fit(self, image: Image) -> Pixels:
        """Resize, and cut where the family cuts. Raises ``BadImageError``."""
        ...

    def num_tokens(self, pixels: Pixels) -> int:
        """Features of one image: how often ``image_token_id`` stands in the prompt for it."""
        ...

    def expand(self, pixels: Pixels) -> list[int]:
        """Token ids in the place of one slot."""
        ...

    def positions(self, tokens: Tokens, images: Sequence[PromptImage]) -> Positions:
        """[axes, N] position ids of a sequence of N tokens that begins with a prompt with these
        images; what follows the last image counts on from there, on all axes alike."""
        ...

    def tensors(self, images: Sequence[PromptImage]) -> dict[str, Tensor]:
        """The model's keyword arguments for all images."""
        ...


def look(family: VisionFamily, files: Sequence[bytes]) -> tuple[PromptImage, ...]:
    """Decode and fit. Raises ``BadImageError``."""
    fitted = [(file, family.fit(decode_image(file))) for file in files]
    return tuple(
        PromptImage(
            digest=hashlib.sha256(file).hexdigest(),
            pixels=pixels,
            num_tokens=family.num_tokens(pixels),
            file=file,
        )
        for file, pixels in fitted
    )


def expand_slots(family: VisionFamily, ids: Sequence[int], images: Sequence[PromptImage]) -> Tokens:
    """Token ids [P] with each slot replaced by the tokens of its image.

    Raises ``BadImageError`` unless there are as many slots as images: a prompt's own text can hold
    the name of the token.
    """
    slot_id = family.image_token_id
    found = sum(token == slot_id for token in ids)
    if found != len(images):
        raise BadImageError(
            f"the rendered prompt has room for {found} images, and {len(images)} are given; the "
            f"text itself must not hold {family.slot}"
        )
    rest = iter(images)
    expanded: list[int] = []
    for token in ids:
        expanded += family.expand(next(rest).pixels) if token == slot_id else [token]
    return np.asarray(expanded, dtype=np.int32)


def image_places(family: VisionFamily, tokens: Tokens) -> npt.NDArray[np.intp]:
    """Indices in a *prompt* whose embeddings are features. An answer's tokens never are, even if
    the policy samples the token."""
    return np.flatnonzero(tokens == family.image_token_id)


def features(family: VisionFamily, model: Any, images: Sequence[PromptImage]) -> Tensor:
    """[sum of num_tokens, hidden] what a loaded model sees in all images, without a gradient."""
    import torch

    tower = next(getattr(model.model, family.frozen[0]).parameters())
    inputs = {
        name: tensor.to(tower.device, tower.dtype if tensor.is_floating_point() else None)
        for name, tensor in family.tensors(images).items()
    }
    with torch.no_grad():
        seen = model.model.get_image_features(**inputs).pooler_output
    whole = torch.cat(seen) if isinstance(seen, tuple | list) else seen
    return whole.reshape(-1, whole.shape[-1])


def model_type_of(path: Path) -> str | None:
    """``model_type`` of a model folder; None if it does not say."""
    try:
        kind = json.loads(read_bytes(path / "config.json")).get("model_type")
    except (OSError, PathError, ValueError, AttributeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def sees(path: Path) -> bool:
    """Whether the model in a folder is of a family that is known here."""
    return model_type_of(path) in FAMILIES


def family_of(
    path: Path, min_pixels: int | None = None, max_pixels: int | None = None
) -> VisionFamily | None:
    """The family of the model in a folder; None for a text model. ``min_pixels`` and ``max_pixels``
    take the place of those of its image processor. Raises ``ConfigError``."""
    kind = model_type_of(path)
    if kind not in FAMILIES:
        return None
    if not (path / "preprocessor_config.json").is_file():
        raise ConfigError(
            f"model {path}: holds no preprocessor_config.json, so images cannot be read as the "
            "model expects; copy it from where the model came from"
        )
    if kind == "internvl":
        from vision.internvl import InternVL

        if min_pixels is not None or max_pixels is not None:
            raise ConfigError(
                "model.image_min_pixels and image_max_pixels are for Qwen2.5-VL; InternVL cuts "
                "images into tiles: set max_patches in its preprocessor_config.json"
            )
        return InternVL(path)
    from vision.qwen import Qwen25VL

    return Qwen25VL(path, min_pixels, max_pixels)
