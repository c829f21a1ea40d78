"""A version leaves the learner: gathered tensor by tensor, stored chunk by chunk, while the next
step trains.

::

    torch thread   gather v ─ copies ─┐ train v+1 ...
    event loop                        └▶ checksum (own thread) ─▶ store ─▶ next chunk ... manifest

The gather is an operation of the torch thread like any other, so what is copied is exactly version
v, and all ranks gather in one order. A chunk's copy is freed once it is stored: at the worst, when
storing is slower than gathering, one copy of the trained weights waits in rank 0's memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from learners.safetensors_stream import Slot
from safeladder.ports import PayloadStore, RawTensors
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import BYTES_PER_ELEMENT, checksum
from safeladder.weight_payload import WeightPayload, split

Chunk = dict[str, npt.NDArray[np.uint8]]


def raw_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """One-dimensional little-endian bytes of a CPU tensor of any dtype; shares its memory."""
    raw: npt.NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw


class Publisher:
    """Publications of one rank; they are asked for one after another."""

    def __init__(self, store: PayloadStore, chunk_bytes: int) -> None:
        self._store = store
        self._chunk_bytes = chunk_bytes

    async def publish(
        self, engine: DeepspeedEngine, thread: Executor, version: int, fence: int
    ) -> tuple[WeightManifest, WeightPayload] | None:
        """Manifest and handles of every trained tensor on rank 0, None elsewhere. *Collective*: the
        gather is queued on ``thread`` before the first wait."""
        loop = asyncio.get_running_loop()
        arrivals: asyncio.Queue[Chunk | None] = asyncio.Queue()

        def deliver(chunk: Chunk | None) -> None:
            loop.call_soon_threadsafe(arrivals.put_nowait, chunk)

        gathered = loop.run_in_executor(thread, _gather, engine, self._chunk_bytes, deliver)
        checksums: dict[str, str] = {}
        handles = []
        while (chunk := await arrivals.get()) is not None:
            checksums |= await asyncio.to_thread(_checksums, chunk)
            handles.append(await self._store.put(chunk))
            del chunk
        slots = await gathered
        if engine.rank != 0:
            return None
        specs = tuple(
            TensorSpec(name=n, dtype=s.dtype, shape=s.shape, checksum=checksums[n])
            for n, s in slots.items()
        )
        manifest = WeightManifest(version=version, fence=fence, tensors=specs)
        return manifest, WeightPayload(chunks=tuple(handles))


def _gather(
    engine: DeepspeedEngine, chunk_bytes: int, deliver: Callable[[Chunk | None], None]
) -> Mapping[str, Slot]:
    """Deliver the trained tensors as copies, chunk by chunk, and at last None, whatever happens.
    *Collective*; only rank 0 has something to deliver."""
    try:
        slots = engine.weight_slots(only_trained=True)
        sizes = {n: math.prod(s.shape) * BYTES_PER_ELEMENT[s.dtype] for n, s in slots.items()}
        weights = engine.weights(only_trained=True)
        for names in split(sizes, chunk_bytes):
            chunk: Chunk = {}
            for expected in names:
                name, tensor = next(weights)
                assert name == expected, f"{name} was gathered where {expected} was due"
                if tensor is not None:
                    chunk[name] = raw_bytes(tensor)
            if chunk:
                deliver(chunk)
        return slots
    finally:
        deliver(None)


def _checksums(tensors: RawTensors) -> dict[str, str]:
    return {name: checksum(raw) for name, raw in tensors.items()}
