"""Image files of strangers: read, refused or decoded. Knows no model.

The size of an image is read from its header and refused before anything is unpacked.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safeladder.images import IMAGE_MARK
from safeladder.paths import PathError, open_bytes
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
        with open_bytes(Path(path)) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > MAX_FILE_BYTES else file.read()
    except FileNotFoundError:
        hint = "; addresses are not fetched" if ":/" in path else ""
        raise BadImageError(f"{path}: there is no such file{hint}") from None
    except (OSError, PathError) as error:
        raise BadImageError(f"{path}: {error}") from None
    if size > MAX_FILE_BYTES:
        raise BadImageError(f"{path}: {size} bytes, the limit is {MAX_FILE_BYTES}")
    return data


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
        raise BadImageError("an image cannot be decoded: it is cut short or damaged") from error


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
    except Image.DecompressionBombError as error:
        raise BadImageError(f"an image of more pixels than the limit, {max_pixels}") from error
    except Exception as error:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise BadImageError(f"an image cannot be decoded: no {kinds} that is whole") from error
