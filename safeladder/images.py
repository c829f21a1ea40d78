"""Images of a prompt as they travel: once for a group, however many siblings it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""[tiles, height, width, 3] RGB, as large as the model takes it; one tile, unless the family of the
model cuts images."""
IMAGE_MARK = "<image>"
"""Where an image stands in a prompt's text; without any, all stand before the last turn's text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptImage:
    """One image. What the learner is given are its pixels; a verifier is shown its file."""

    digest: str
    """Hex SHA-256 of the file."""
    pixels: Pixels = field(repr=False)
    num_tokens: int
    """Tokens that stand for it in the prompt and become its features."""
    file: bytes = field(default=b"", repr=False)
    """As it was read; empty where nobody is shown it any more."""

    @property
    def identity(self) -> str:
        """Equal for equal pixels: the file, and the size that it was brought to."""
        return f"{self.digest}:{'x'.join(map(str, self.pixels.shape[:3]))}"


class Illustrated(Protocol):
    """Anything that may have images."""

    @property
    def images(self) -> tuple[PromptImage, ...]:
        """In the order in which they stand in the text."""
        ...


def distinct(pieces: Sequence[Illustrated]) -> dict[str, PromptImage]:
    """Identity → image, each once, in order of appearance."""
    return {image.identity: image for piece in pieces for image in piece.images}
