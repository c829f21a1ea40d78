"""A version leaves the learner: gathered tensor by tensor, stored chunk by chunk, while the next
step trains.

::

    torch thread   gather v ─ copies ─┐ train v+1 ...
    event loop                        └▶ checksum (own thread) ─▶ store ─▶ next chunk ... manifest

With ``weights.delta`` the version before stays mapped from the store, and what changed since then
is stored beside the whole version.

The gather is an operation of the torch thread like any other, so what is copied is exactly version
v, and all ranks gather in one order. A chunk's copy is freed once it is stored: at the worst, when
storing is slower than gathering, one copy of the trained weights waits in rank 0's memory.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from learners.delta_encoder import Base, DeltaEncoder
from learners.safetensors_stream import Slot
from safeladder.commit_points import reached
from safeladder.ports import PayloadStore, RawTensors
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import BYTES_PER_ELEMENT, checksums
from safeladder.weight_payload import WeightDelta, WeightPayload, split


def raw_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """One-dimensional little-endian bytes of a CPU tensor of any dtype; shares its memory."""
    raw: npt.NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Copies of the next tensors, and what they are."""

    slots: Mapping[str, Slot]
    raw: RawTensors

    def specs(self) -> list[TensorSpec]:
        """Their entries in the manifest."""
        found = checksums(self.raw)
        return [
            TensorSpec(name=n, dtype=s.dtype, shape=s.shape, checksum=found[n])
            for n, s in self.slots.items()
        ]


Arrivals = asyncio.Queue[_Chunk | None]


class Publisher:
    """Publications of one rank, which leave one after another."""

    def __init__(self, store: PayloadStore, chunk_bytes: int, *, delta: bool = False) -> None:
        self._store = store
        self._chunk_bytes = chunk_bytes
        self._has_deltas = delta
        self._base: Base | None = None
        self._turn = asyncio.Lock()

    async def publish(
        self, engine: DeepspeedEngine, thread: Executor, version: int, fence: int
    ) -> tuple[WeightManifest, WeightPayload] | None:
        """Manifest and handles of every trained tensor on rank 0, None elsewhere. *Collective*: the
        gather is queued on ``thread`` before the first wait."""
        loop = asyncio.get_running_loop()
        arrivals: Arrivals = asyncio.Queue()

        def deliver(chunk: _Chunk | None) -> None:
            loop.call_soon_threadsafe(arrivals.put_nowait, chunk)

        gathered = loop.run_in_executor(thread, _gather, engine, self._chunk_bytes, deliver)
        if engine.rank != 0:
            await gathered
            return None
        async with self._turn:
            encoder = None if self._base is None else DeltaEncoder(self._base)
            specs, handles = await self._store_all(arrivals, encoder)
            await gathered
            reached("publication.stored", version)
            manifest = WeightManifest(version=version, fence=fence, tensors=specs)
            delta = None if encoder is None else await self._store_delta(encoder)
            if self._has_deltas:
                await self._remember(manifest, handles)
            return manifest, WeightPayload(chunks=handles, delta=delta)

    async def _store_all(
        self, arrivals: Arrivals, encoder: DeltaEncoder | None
    ) -> tuple[tuple[TensorSpec, ...], tuple[Any, ...]]:
        """Entries of the manifest and handles of the chunks."""
        specs: list[TensorSpec] = []
        handles: list[Any] = []
        while (chunk := await arrivals.get()) is not None:
            specs += await asyncio.to_thread(chunk.specs)
            if encoder is not None:
                dtypes = {name: slot.dtype for name, slot in chunk.slots.items()}
                await asyncio.to_thread(encoder.add, chunk.raw, dtypes)
            handles.append(await self._store.put(chunk.raw))
        return tuple(specs), tuple(handles)

    async def _store_delta(self, encoder: DeltaEncoder) -> WeightDelta | None:
        if not encoder.is_gain:
            return None
        sizes = {name: delta.nbytes for name, delta in encoder.deltas.items()}
        chunks = [
            await self._store.put({name: encoder.deltas[name] for name in names})
            for names in split(sizes, self._chunk_bytes)
        ]
        return WeightDelta(
            base_digest=encoder.base_digest,
            chunks=tuple(chunks),
            num_bytes=encoder.num_bytes,
            num_changed=encoder.num_changed,
        )

    async def _remember(self, manifest: WeightManifest, handles: Sequence[Any]) -> None:
        self._base = None
        chunks = [await self._store.get(handle) for handle in handles]
        self._base = Base(manifest.digest, chunks)


def _gather(
    engine: DeepspeedEngine, chunk_bytes: int, deliver: Callable[[_Chunk | None], None]
) -> None:
    """Deliver the trained tensors as copies, chunk by chunk, and at last None, whatever happens.
    *Collective*; only rank 0 has something to deliver."""
    try:
        slots = engine.weight_slots(only_trained=True)
        sizes = {n: math.prod(s.shape) * BYTES_PER_ELEMENT[s.dtype] for n, s in slots.items()}
        weights = engine.weights(only_trained=True)
        for names in split(sizes, chunk_bytes):
            tensors = dict(itertools.islice(weights, len(names)))
            raw = {name: raw_bytes(t) for name, t in tensors.items() if t is not None}
            if engine.rank == 0:
                deliver(_Chunk({name: slots[name] for name in names}, raw))
        if engine.rank == 0:
            reached("publication.gathered")
    finally:
        deliver(None)
