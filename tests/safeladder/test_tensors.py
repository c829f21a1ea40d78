from __future__ import annotations

import numpy as np
import pytest
import xxhash

from safeladder.errors import ChecksumError
from safeladder.records import TensorSpec, WeightManifest
from safeladder.tensors import RawBytes, checksum, verify


def version(raw: dict[str, RawBytes]) -> WeightManifest:
    specs = tuple(
        TensorSpec(name=name, dtype="bfloat16", shape=(b.size // 2,), checksum=checksum(b))
        for name, b in raw.items()
    )
    return WeightManifest(version=4, fence=1, tensors=specs)


def raw_tensors() -> dict[str, RawBytes]:
    return {"a": np.arange(6, dtype=np.uint8), "b": np.arange(10, dtype=np.uint8)}


def test_the_checksum_is_xxh3_of_the_bytes_whatever_their_strides() -> None:
    raw = np.arange(20, dtype=np.uint8)
    assert checksum(raw[::2]) == xxhash.xxh3_128_hexdigest(bytes(range(0, 20, 2)))


def test_tensors_that_match_their_manifest_pass() -> None:
    verify(version(raw_tensors()), raw_tensors())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda raw: raw.pop("b"), "version 4 lacks the tensor b"),
        (lambda raw: raw.update(b=raw["b"][:8]), "b of version 4 has 8 bytes"),
        (lambda raw: raw["a"].__setitem__(2, 9), "a of version 4 has checksum"),
        (lambda raw: raw.update(c=raw["a"]), "does not name c"),
    ],
)
def test_every_difference_is_refused_by_name(fault, message) -> None:  # type: ignore[no-untyped-def]
    raw = raw_tensors()
    manifest = version(raw)
    fault(raw)
    with pytest.raises(ChecksumError, match=message):
        verify(manifest, raw)
