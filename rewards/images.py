"""Images as judges take them: bytes of a known type, never an address to fetch."""

from __future__ import annotations

import base64

from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause

MAX_IMAGE_BYTES = 8 * 2**20


def image_type(data: bytes) -> str | None:
    """Media type by the file's own first bytes (PNG, JPEG or WebP), or None.

    >>> image_type(b"RIFF....WEBPVP8 ")
    'image/webp'
    >>> image_type(b"<svg onload=...>") is None
    True
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def require_image(data: bytes, max_bytes: int) -> str:
    """The media type. Raises ``UnjudgedError`` (abstain) for other types and sizes."""
    kind = image_type(data)
    if kind is None:
        raise UnjudgedError(InvalidCause.ABSTAIN, "an image is neither PNG, JPEG nor WebP")
    if len(data) > max_bytes:
        detail = f"an image has {len(data)} bytes, the limit is {max_bytes}"
        raise UnjudgedError(InvalidCause.ABSTAIN, detail)
    return kind


def data_url(data: bytes, max_bytes: int) -> str:
    """``data:<type>;base64,...``. Raises as ``require_image``."""
    kind = require_image(data, max_bytes)
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
