"""Image files of strangers: read, refused or decoded. Knows no model.

The size of an image is read from its header and refused before anything is unpacked.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safeladder.images import IMAGE_MARK
from safeladder.paths import PathError, read_bytes
from safeladder.records import FailureCause, Message, Prompt

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_ASPECT = 200
"""Longer side through shorter side; image processors have no size for more."""
MAX_FILE_BYTES = 64 * 2**20
MAX_FILE_PIXELS = 50_000_000
"""Of one image of a prompt, before it is resized: 150 MB of memory."""


class BadImageError(ValueError):
    """Bytes that are no image, one of a size or shape that is not read, or one without a place."""

    failure_cause: FailureCause = "image_unreadable"


def read_image(path: str) -> bytes:
    """The file. Raises ``BadImageError`` with the path for one that is missing or too large."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadImageError(f"{path}: {size} bytes, the limit is {MAX_FILE_BYTES}")
        return read_bytes(Path(path))
    except FileNotFoundError:
        raise BadImageError(f"{path}: there is no such file") from None
    except (OSError, PathError) as error:
        raise BadImageError(f"{path}: {error}") from None


def without_marks(prompt: Prompt) -> tuple[Message, ...]:
    """The conversation for whoever is shown the images beside it."""
    if not prompt.images:
        return prompt.messages
    return tuple(m._replace(content=m.content.replace(IMAGE_MARK, "")) for m in prompt.messages)


def decode_image(data: bytes, max_pixels: int = MAX_FILE_PIXELS) -> Image.Image:
    """The RGB image in ``data``. Raises ``BadImageError``."""
    try:
        return open_image(data, max_pixels).convert("RGB")
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"an image cannot be decoded: {type(error).__name__}") from error


def open_image(data: bytes, max_pixels: int = MAX_FILE_PIXELS) -> Image.Image:
    """The image with its header read and its content not. Raises ``BadImageError``."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the limit
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = "x".join(map(str, image.size))
        if math.prod(image.size) > max_pixels:
            raise BadImageError(f"an image of {size} pixels, the limit is {max_pixels}")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise BadImageError(f"an image of {size} pixels is too thin")
        return image
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(f"an image cannot be decoded: {type(error).__name__}") from error
