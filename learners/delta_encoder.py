"""What changed since the version published before, chunk by chunk, as long as that is a gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safeladder.ports import RawTensors
from safeladder.tensors import BYTES_PER_ELEMENT, RawBytes
from safeladder.weight_deltas import encode, num_changed

MAX_SHARE = 0.5
"""A delta larger than this share of its version is not worth a second way to load it."""


@dataclass(frozen=True, slots=True)
class Base:
    """A version as the store maps it."""

    digest: str
    chunks: Sequence[RawTensors]
    """The same tensors in each chunk as in every later version."""

    @property
    def num_bytes(self) -> int:
        """Raw size of all tensors."""
        return sum(raw.nbytes for chunk in self.chunks for raw in chunk.values())


class DeltaEncoder:
    """The deltas of one version; ``add`` its chunks in order."""

    def __init__(self, base: Base) -> None:
        self.base_digest = base.digest
        self._chunks = iter(base.chunks)
        self._limit = MAX_SHARE * base.num_bytes
        self.deltas: dict[str, RawBytes] = {}
        """Tensor → its delta; those that did not change are left out."""
        self.num_bytes = 0
        self.num_changed = 0

    @property
    def is_gain(self) -> bool:
        """Whether the deltas so far are small enough."""
        return self.num_bytes <= self._limit

    def add(self, chunk: RawTensors, dtypes: Mapping[str, str]) -> None:
        """Encode the next chunk, unless there is nothing to gain any more."""
        before = next(self._chunks)
        for name, raw in chunk.items():
            if not self.is_gain:
                self.deltas.clear()
                return
            delta = encode(before[name], raw, BYTES_PER_ELEMENT[dtypes[name]])
            if delta is not None:
                self.deltas[name] = delta
                self.num_bytes += delta.nbytes
                self.num_changed += num_changed(delta)
