"""A published version as verified bytes, read while the engine still generates.

Chunks are mapped from the object store, not copied: engines of one node look at the same memory,
and a far node pulls each chunk once. Everything is verified before the engine is paused, so that a
version which is damaged or lost costs no token. Knows no engine.

With deltas, a host copy of the newest version is kept, changed in place by the next delta and
verified as a whole. Whatever is wrong with a delta or its base, the whole version is read instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from safeladder.errors import ChecksumError
from safeladder.ports import PayloadStore, RawTensors
from safeladder.records import WeightManifest
from safeladder.tensors import RawBytes, verify
from safeladder.weight_deltas import DeltaError, apply
from safeladder.weight_payload import WeightDelta, WeightPayload

logger = logging.getLogger(__name__)


class WeightIntake:
    """``ports.Intake`` on the object store, one version after another."""

    def __init__(self, store: PayloadStore, *, delta: bool = False) -> None:
        self._store = store
        self._keeps_base = delta
        self._base: dict[str, RawBytes] = {}
        self._base_digest = ""
        self._is_mapped = True
        """Whether the base is the store's memory still, which is nobody's to change."""
        self.deltas_taken = 0
        """Versions that were read as a delta."""

    async def take(self, manifest: WeightManifest, payload: WeightPayload) -> RawTensors:
        """The tensors of a version, verified against its manifest. They are not to be changed, and
        good until the next call. Raises ``ChecksumError``, and ``KeyError`` if a chunk is lost."""
        delta = payload.delta
        if delta is not None and delta.base_digest == self._base_digest:
            try:
                return await self._take_delta(manifest, delta)
            except (ChecksumError, DeltaError, KeyError) as error:
                logger.warning("version %d not read as a delta: %s", manifest.version, error)
        self._base, self._base_digest = {}, ""
        tensors: dict[str, RawBytes] = {}
        for handle in payload.chunks:
            tensors |= await self._store.get(handle)
        await asyncio.to_thread(verify, manifest, tensors)
        if self._keeps_base:
            self._base, self._base_digest = tensors, manifest.digest
            self._is_mapped = True
        return tensors

    async def _take_delta(self, manifest: WeightManifest, delta: WeightDelta) -> RawTensors:
        deltas: dict[str, RawBytes] = {}
        for handle in delta.chunks:
            deltas |= await self._store.get(handle)
        self._base_digest = ""  # a mixture until it is verified
        await asyncio.to_thread(self._patch, manifest, deltas)
        self._base_digest = manifest.digest
        self.deltas_taken += 1
        return self._base

    def _patch(self, manifest: WeightManifest, deltas: Mapping[str, RawBytes]) -> None:
        if self._is_mapped:
            self._base = {name: raw.copy() for name, raw in self._base.items()}
            self._is_mapped = False
        for name, raw in deltas.items():
            apply(raw, self._base[name])
        verify(manifest, self._base)
