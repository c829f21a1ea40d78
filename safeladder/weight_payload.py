"""Where the bytes of a published version lie: what travels beside its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDelta:
    """A version as what changed since another one, in the payload store beside the whole."""

    base_digest: str
    """``WeightManifest.digest`` of the version that it changes."""
    chunks: tuple[Any, ...]
    """Handles; each is a mapping of tensor name → ``weight_deltas`` bytes. Tensors that did not
    change are left out."""
    num_bytes: int
    num_changed: int
    """Elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPayload:
    """Handles in the payload store. No object holds a whole model: each is a ``RawTensors`` of the
    next tensors of the manifest, which engines of one node map instead of copying."""

    chunks: tuple[Any, ...]
    delta: WeightDelta | None = None
    """For engines that hold its base; None if there is no base, or the delta would be large."""


def split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, in runs of at most ``limit`` bytes; a larger tensor stands alone.

    >>> split({"a": 4, "b": 4, "c": 9, "d": 1}, 8)
    [['a', 'b'], ['c'], ['d']]
    """
    runs: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not runs or size > room:
            runs.append([])
            room = limit
        runs[-1].append(name)
        room -= size
    return runs
