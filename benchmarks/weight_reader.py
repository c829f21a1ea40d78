"""The other end of the wire in ``benchmarks.weights``: a role that reads versions like an engine's
actor does, and says where the bytes lie."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.weight_intake import WeightIntake
from safeladder.ports import PayloadStore
from safeladder.records import WeightManifest
from safeladder.weight_payload import WeightPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a version was read."""

    seconds: float
    files: frozenset[tuple[str, int]]
    """Shared memory that the tensors are views of, if it was looked at: (device, inode)."""
    is_writeable: bool
    """Whether any tensor may be written to."""
    deltas_taken: int


class WeightReader:
    """Reads and verifies versions, one after another."""

    def __init__(self, store: PayloadStore, *, delta: bool) -> None:
        self._intake = WeightIntake(store, delta=delta)

    async def start(self) -> bool:
        """Answer once."""
        return True

    async def take(
        self, manifest: WeightManifest, payload: WeightPayload, *, look: bool = False
    ) -> Reading:
        """Read one version; ``look`` where its bytes lie, which takes longer than to read it."""
        began = time.perf_counter()
        tensors = await self._intake.take(manifest, payload)
        seconds = time.perf_counter() - began
        return Reading(
            seconds=seconds,
            files=frozenset(shared_file(raw) for raw in tensors.values() if look),
            is_writeable=any(raw.flags.writeable for raw in tensors.values()),
            deltas_taken=self._intake.deltas_taken,
        )


def build_reader(*, store: PayloadStore, delta: bool) -> WeightReader:
    """Build function of the reader."""
    return WeightReader(store, delta=delta)


def shared_file(raw: npt.NDArray[Any]) -> tuple[str, int]:
    """Device and inode of the file that an array is a view of; inode 0 is private memory."""
    address = np.lib.array_utils.byte_bounds(raw)[0]
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, flags, _, device, inode, *_ = line.split()
        first, _, last = span.partition("-")
        if int(first, 16) <= address < int(last, 16):
            return device, int(inode) if flags[3] == "s" else 0
    raise ValueError(f"{address:#x} lies in no mapping")
