"""Writes one safetensors file tensor by tensor, so that no model has to be in memory whole.

Also what the library does not do: hash while writing, fsync, and raise plain ``OSError``. Format:
8 bytes of header length, a JSON header, raw little-endian data without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

DTYPES = {
    "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "float64": ("F64", 8),
    "int32": ("I32", 4), "int64": ("I64", 8), "uint8": ("U8", 1),
}  # fmt: skip
"""Our dtype names: (name in the format, bytes of one element)."""


class Slot(NamedTuple):
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class SafetensorsStream:
    """A file being written. Tensors come in the order of ``slots``; leaving the ``with`` block
    makes the file durable and sets ``sha256`` and ``num_bytes``."""

    def __init__(
        self, path: Path, slots: Mapping[str, Slot], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._path, self._slots = path, slots
        self._metadata = dict(metadata or {})
        self._pending = list(slots)
        self._digest = hashlib.sha256()
        self.sha256 = ""
        self.num_bytes = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **self._metadata}}
        offset = 0
        for name, slot in self._slots.items():
            code, width = DTYPES[slot.dtype]
            end = offset + width * math.prod(slot.shape)
            header[name] = {"dtype": code, "shape": slot.shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._put(len(text).to_bytes(8, "little"))
        self._put(text)
        return self

    def write(self, name: str, raw: npt.NDArray[np.uint8]) -> None:
        """Append the next tensor's raw bytes."""
        assert self._pending[0] == name, f"{name} comes before its turn ({self._pending[0]})"
        slot = self._slots[self._pending.pop(0)]
        assert raw.nbytes == DTYPES[slot.dtype][1] * math.prod(slot.shape), name
        self._put(raw)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._file as file:
            if error is None:
                assert not self._pending, f"{len(self._pending)} tensors were not written"
                file.flush()
                os.fsync(file.fileno())
                self.sha256 = self._digest.hexdigest()

    def _put(self, data: Any) -> None:
        view = memoryview(data)
        self._digest.update(view)
        self._file.write(view)
        self.num_bytes += view.nbytes
