"""What changed between two versions of a tensor, without loss, in few bytes.

At a small learning rate few bfloat16 weights move at all between two versions, and those that do
mostly to a neighbouring number. One tensor's delta is a header and two streams:

- positions: the gap before each changed element, in 8 or 16 bits (the largest number stands for
  "this far, and no element here"), or one bit for every element, whichever is shortest;
- values: the signed difference of the bit patterns in 8 bits (-128: too far, the new pattern stands
  at the end), or all new patterns as they are, whichever is shorter.

A delta does not say whether it was applied to the right bytes: the manifest's checksums do.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from safeladder.tensors import RawBytes

HEADER = struct.Struct("<BBHIQQ")
"""Kind of positions, kind of values, bytes of an element, 0, changed elements, all elements."""
GAPS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}
"""Kind of positions → type of a gap."""
BITS = 3
PLAIN, NEAR = 0, 1
FAR = -128

Array = npt.NDArray[Any]


class DeltaError(ValueError):
    """These bytes are no delta for that tensor."""


def encode(old: RawBytes, new: RawBytes, width: int) -> RawBytes | None:
    """The delta that makes ``old`` to ``new``, elements of ``width`` bytes (1, 2, 4 or 8); None if
    they are equal. Raises ``ValueError`` if their sizes differ."""
    if old.size != new.size:
        raise ValueError(f"{old.size} bytes have no delta to {new.size}")
    before, after = _elements(old, width), _elements(new, width)
    positions = _changed(old, new, width)
    if not positions.size:
        return None
    where_kind, where = _encode_positions(positions, before.size)
    what_kind, what = _encode_values(before[positions], after[positions])
    header = HEADER.pack(where_kind, what_kind, width, 0, positions.size, before.size)
    delta: RawBytes = np.concatenate([np.frombuffer(header, np.uint8), where, what])
    return delta


def apply(delta: RawBytes, target: RawBytes) -> None:
    """Change ``target`` (writable) in place. Raises ``DeltaError`` for bytes that are no delta of a
    tensor of this size, and then has changed nothing."""
    if delta.size < HEADER.size:
        raise DeltaError(f"{delta.size} bytes are no delta")
    where_kind, what_kind, width, zero, count, size = HEADER.unpack(delta[: HEADER.size].tobytes())
    if zero or width not in (1, 2, 4, 8) or size * width != target.size or count > size:
        raise DeltaError(f"a delta of {size} elements of {width} bytes for {target.size} bytes")
    body = delta[HEADER.size :]
    elements = _elements(target, width)
    positions, rest = _decode_positions(where_kind, body, count, size)
    elements[positions] = _decode_values(what_kind, rest, elements[positions])


def num_changed(delta: RawBytes) -> int:
    """Elements that a delta changes."""
    count: int = HEADER.unpack(delta[: HEADER.size].tobytes())[4]
    return count


def _elements(raw: RawBytes, width: int) -> Array:
    return raw.view(np.dtype(f"<u{width}"))


def _changed(old: RawBytes, new: RawBytes, width: int) -> Array:
    """Positions of the elements that differ, ascending. Eight bytes are compared at a time, which
    is what makes a tensor that hardly changed cheap."""
    per_lane, end = 8 // width, old.size // 8 * 8
    lanes = np.flatnonzero(_elements(old[:end], 8) != _elements(new[:end], 8))
    before, after = (_elements(raw[:end], 8)[lanes].view(f"<u{width}") for raw in (old, new))
    differing = np.flatnonzero(before != after)
    head = lanes[differing // per_lane] * per_lane + differing % per_lane
    tail = np.flatnonzero(_elements(old[end:], width) != _elements(new[end:], width))
    return np.concatenate([head, tail + end // width])


def _encode_positions(positions: Array, size: int) -> tuple[int, RawBytes]:
    gaps = np.diff(positions, prepend=-1) - 1
    lengths = {BITS: -(-size // 8)}
    for kind, dtype in GAPS.items():
        longest = np.iinfo(dtype).max
        lengths[kind] = dtype.itemsize * int(gaps.size + (gaps // longest).sum())
    kind = min(lengths, key=lambda kind: lengths[kind])
    if kind == BITS:
        marks = np.zeros(size, dtype=bool)
        marks[positions] = True
        return kind, np.packbits(marks, bitorder="little")
    longest = np.iinfo(GAPS[kind]).max
    skips = gaps // longest
    ends = np.cumsum(skips + 1) - 1
    stream = np.full(int(ends[-1]) + 1, longest, dtype=GAPS[kind])
    stream[ends] = gaps - skips * longest
    return kind, stream.view(np.uint8)


def _decode_positions(kind: int, body: RawBytes, count: int, size: int) -> tuple[Array, RawBytes]:
    """Ascending positions below ``size``, and what follows them."""
    if kind == BITS:
        end = -(-size // 8)
        marks = np.unpackbits(body[:end], bitorder="little")
        positions = np.flatnonzero(marks)
    elif kind in GAPS:
        positions, end = _decode_gaps(body, GAPS[kind], count)
    else:
        raise DeltaError(f"positions of kind {kind} are unknown")
    if positions.size != count or (count and positions[-1] >= size):
        raise DeltaError(f"its {positions.size} positions are not {count} below {size}")
    return positions, body[end:]


def _decode_gaps(body: RawBytes, dtype: np.dtype[Any], count: int) -> tuple[Array, int]:
    """The first ``count`` positions of the stream, and the stream's length in bytes."""
    stream = body[: body.size // dtype.itemsize * dtype.itemsize].view(dtype)
    ends = np.flatnonzero(stream != np.iinfo(dtype).max)[:count]
    if not ends.size:
        return ends, 0
    length = int(ends[-1]) + 1
    return np.cumsum(stream[:length], dtype=np.int64)[ends] + np.arange(ends.size), (
        length * dtype.itemsize
    )


def _encode_values(before: Array, after: Array) -> tuple[int, RawBytes]:
    plain = after.view(np.uint8)
    signed = np.dtype(f"<i{after.itemsize}")
    difference = (after - before).view(signed)
    is_far = (difference <= FAR) | (difference > 127)
    far = after[is_far]
    if difference.size + far.nbytes >= plain.size:
        return PLAIN, plain
    near = np.where(is_far, FAR, difference).astype(np.int8)
    return NEAR, np.concatenate([near.view(np.uint8), far.view(np.uint8)])


def _decode_values(kind: int, rest: RawBytes, before: Array) -> Array:
    """The new elements, in place of ``before``."""
    if kind == PLAIN and rest.size == before.nbytes:
        return rest.view(before.dtype)
    near = rest[: before.size].view(np.int8)
    is_far = near == FAR
    far = rest[before.size :]
    if (
        kind != NEAR
        or near.size != before.size
        or far.size != before.itemsize * int(np.count_nonzero(is_far))
    ):
        raise DeltaError(f"{rest.size} bytes are not the values of {before.size} elements")
    after = before + near.astype(np.dtype(f"<i{before.itemsize}")).view(before.dtype)
    after[is_far] = far.view(before.dtype)
    return after
