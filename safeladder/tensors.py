"""The raw bytes of weight tensors, and the checksums that guard them.

Owns the one definition of a tensor's checksum and of "these bytes are what the manifest says".
Knows no torch: a tensor is a one-dimensional array of its little-endian bytes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import xxhash

from safeladder.errors import ChecksumError
from safeladder.ports import RawTensors
from safeladder.records import TensorSpec, WeightManifest

RawBytes = npt.NDArray[np.uint8]

BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


def checksum(raw: RawBytes) -> str:
    """Hex xxh3-128 of the raw bytes."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(raw).data)


def num_bytes(spec: TensorSpec) -> int:
    """Raw size of one tensor."""
    return math.prod(spec.shape) * BYTES_PER_ELEMENT[spec.dtype]


def checksums(tensors: RawTensors) -> dict[str, str]:
    """Of every tensor. On two threads: one does not read memory as fast as it can be read."""
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(tensors, threads.map(checksum, tensors.values()), strict=True))


def verify(manifest: WeightManifest, tensors: RawTensors) -> None:
    """Compare every tensor with its entry in the manifest.

    Raises ``ChecksumError`` that names the first tensor which is missing, has another size or
    other bytes. Tensors that the manifest does not name are an error too.
    """
    for spec in manifest.tensors:
        raw = tensors.get(spec.name)
        if raw is None:
            raise ChecksumError(f"version {manifest.version} lacks the tensor {spec.name}")
        if raw.nbytes != num_bytes(spec):
            raise ChecksumError(
                f"{spec.name} of version {manifest.version} has {raw.nbytes} bytes, "
                f"its manifest says {num_bytes(spec)}"
            )
    if len(tensors) != len(manifest.tensors):
        extra = sorted(set(tensors) - {spec.name for spec in manifest.tensors})
        raise ChecksumError(f"version {manifest.version} does not name {', '.join(extra[:3])}")
    found = checksums(tensors)
    for spec in manifest.tensors:
        if found[spec.name] != spec.checksum:
            raise ChecksumError(
                f"{spec.name} of version {manifest.version} has checksum {found[spec.name]}, "
                f"its manifest says {spec.checksum}"
            )
