"""A published version as verified bytes, read while the engine still generates.

Chunks are mapped from the object store, not copied: engines of one node look at the same memory,
and a far node pulls each chunk once. Everything is verified before the engine is paused, so that a
version which is damaged or lost costs no token. Knows no engine.
"""

from __future__ import annotations

import asyncio

from safeladder.ports import PayloadStore, RawTensors
from safeladder.records import WeightManifest
from safeladder.tensors import RawBytes, verify
from safeladder.weight_payload import WeightPayload


class WeightIntake:
    """Reads versions for one engine."""

    def __init__(self, store: PayloadStore) -> None:
        self._store = store

    async def take(self, manifest: WeightManifest, payload: WeightPayload) -> RawTensors:
        """The tensors of a version, verified against its manifest; read-only where the store maps
        its memory. Raises ``ChecksumError``, and ``KeyError`` if a chunk is lost."""
        tensors: dict[str, RawBytes] = {}
        for handle in payload.chunks:
            tensors |= await self._store.get(handle)
        await asyncio.to_thread(verify, manifest, tensors)
        return tensors
