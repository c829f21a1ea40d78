"""The trained tensors of one version, gathered layer by layer, as raw bytes with checksums."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from safeladder.ports import RawTensors
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import checksum


def raw_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """One-dimensional little-endian bytes of a CPU tensor of any dtype; shares its memory."""
    raw: npt.NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw


def gather_version(
    engine: DeepspeedEngine, version: int, fence: int
) -> tuple[WeightManifest, RawTensors] | None:
    """Manifest and bytes of every trained tensor on rank 0, None elsewhere. *Collective.*"""
    slots = engine.weight_slots(only_trained=True)
    raw = {
        name: raw_bytes(tensor)
        for name, tensor in engine.weights(only_trained=True)
        if tensor is not None
    }
    if engine.rank != 0:
        return None
    specs = tuple(
        TensorSpec(name=n, dtype=s.dtype, shape=s.shape, checksum=checksum(raw[n]))
        for n, s in slots.items()
    )
    return WeightManifest(version=version, fence=fence, tensors=specs), raw
