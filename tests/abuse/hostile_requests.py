"""Requests that no service should score: one generator for each class of attack.

Every item is the bytes of an envelope, except where the envelope itself is broken. All start from
one good request, so that the service gets as far as it can before it must notice.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from cluster import wire
from cluster.protos import verifier_pb2
from tests.cluster.verifier_fakes import make_request

GOOD = wire.join_requests([wire.pack_request(make_request(images=(b"\x89PNG",)))])
FIELDS: dict[str, Any] = msgpack.unpackb(GOOD)["requests"][0]
_START = b"\x81\xa8requests\x91"
_HUGE = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x0f\x42\x40")


def envelope(payload: bytes, **fields: Any) -> bytes:
    """A call of principle ``safety``, well-formed but for what is given."""
    common = {"schema_version": wire.SCHEMA_VERSION, "request_id": "r", "principle": "safety"}
    message = verifier_pb2.Envelope(**{**common, "payload": payload, **fields})
    return bytes(message.SerializeToString())


def body(**changes: Any) -> bytes:
    """The good request with some fields changed; a value of bytes behind ``Raw`` goes in as is."""
    packed = b"".join(
        msgpack.packb(name) + (value.body if isinstance(value, Raw) else msgpack.packb(value))
        for name, value in {**FIELDS, **changes}.items()
    )
    return _START + msgpack.Packer().pack_map_header(len({**FIELDS, **changes})) + packed


class Raw:
    """Bytes that stand where a value should."""

    def __init__(self, body: bytes) -> None:
        self.body = body


def _truncated() -> Iterator[bytes]:
    step = max(1, len(GOOD) // 40)
    yield from (envelope(GOOD[:length]) for length in range(0, len(GOOD), step))


def _trailing() -> Iterator[bytes]:
    for tail in (b"\x00", b"\xc0", GOOD, b"\x91" * 50, b"\xc1"):
        yield envelope(GOOD + tail)


def _wrong_types() -> Iterator[bytes]:
    wrong: dict[str, tuple[Any, ...]] = {
        "sample_id": (1, None, b"s", ["s"], ""),
        "attempt": ("1", 1.0, None, True, [1]),
        "messages": ("hi", None, [["user"]], [["a", "b", "c"]], [[1, "b"]], [{"role": "user"}]),
        "response": (1, None, b"text", ["text"]),
        "finish_reason": ("tired", 1, None, ""),
        "num_tokens": ("1", 1.5, None, False),
        "route": (1, None, ""),
        "reference": (1, b"r", ["r"]),
        "lang": (1, None, b"en"),
        "images": (None, "png", {"a": b"x"}, [1], [None]),
        "meta": (None, 1, "m", [1], [], b"\x80"),
    }
    for name, values in wrong.items():
        yield from (envelope(body(**{name: value})) for value in values)
    yield from (envelope(msgpack.packb(value)) for value in (None, 1, "x", [], [1], b"x", {}, 1.5))
    yield from (envelope(msgpack.packb({"requests": v})) for v in (None, {}, [1], [[]], "x", [{}]))


def _missing_fields() -> Iterator[bytes]:
    for name in FIELDS:
        rest = {key: value for key, value in FIELDS.items() if key != name}
        yield envelope(msgpack.packb({"requests": [rest]}))


def _unknown_fields() -> Iterator[bytes]:
    for name in ("reward", "score", "", "__class__", "Attempt", "attempt ", "x" * 10_000):
        yield envelope(body(**{name: 1}))
    yield envelope(msgpack.packb({"requests": [FIELDS], "more": 1}))


def _duplicate_keys() -> Iterator[bytes]:
    inner = GOOD[len(_START) + 1 :]
    for name, value in FIELDS.items():
        again = msgpack.packb(name) + msgpack.packb(value)
        yield envelope(_START + b"\x8c" + again + inner)
        yield envelope(_START + b"\xde\x00\x0c" + inner + again)
    yield envelope(b"\x82\xa8requests\x91\x80" + GOOD[1:])
    yield envelope(body(meta=Raw(b"\x82\xa1a\x01\xa1a\x02")))
    yield envelope(body(meta=Raw(b"\x81\xa1a\x82\xa1b\x01\xa1b\x01")))


def _not_finite() -> Iterator[bytes]:
    for number in (math.nan, math.inf, -math.inf):
        yield envelope(body(meta={"a": number}))
        yield envelope(body(meta={"a": [{"b": [number]}]}))
        yield envelope(body(attempt=number))
        yield envelope(body(meta=Raw(b"\x81\xa1a\xca" + struct.pack(">f", number))))


def _ext_types() -> Iterator[bytes]:
    for ext in (
        b"\xd4\x01\x00",
        b"\xd6\xff\x00\x00\x00\x01",
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x00\x05",
        b"\xc9\xff\xff\xff\xff\x01",
    ):
        yield envelope(ext)
        yield envelope(body(meta=Raw(b"\x81\xa1a" + ext)))
        yield envelope(body(response=Raw(ext)))


def _huge_lengths() -> Iterator[bytes]:
    for length in _HUGE:
        for opcode in (b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"):
            yield envelope(opcode + length)
            yield envelope(body(meta=Raw(b"\x81\xa1a" + opcode + length)))
        yield envelope(b"\x81\xa8requests\xdd" + length)
        yield envelope(body(images=Raw(b"\xdd" + length)))
        yield envelope(body(messages=Raw(b"\xdd" + length)))


def _deep_nesting() -> Iterator[bytes]:
    for depth in (17, 100, 500, 900, 5000, 100_000):
        for opening in (b"\x91", b"\x81\xa1a"):
            yield envelope(opening * depth + b"\xc0")
            yield envelope(body(meta=Raw(b"\x81\xa1a" + opening * depth + b"\xc0")))


def _bombs() -> Iterator[bytes]:
    million = struct.pack(">I", 1_000_000)
    for value in (b"\x90", b"\x80", b"\xc0", b"\xa0"):
        yield envelope(b"\xdd" + million + value * 1_000_000)
        yield envelope(b"\x81\xa8requests\xdd" + million + value * 1_000_000)
        yield envelope(body(meta=Raw(b"\x81\xa1a\xdd" + million + value * 1_000_000)))
    yield envelope(body(meta={str(i): i for i in range(wire.MAX_VALUES_PER_SAMPLE + 1)}))
    yield envelope(body(meta={str(i): [[]] * 300 for i in range(14)}))


def _numbers_out_of_range() -> Iterator[bytes]:
    for number in (-1, -(2**31), -(2**63), 2**31 + 1, 2**64 - 1):
        yield envelope(body(attempt=number))
        yield envelope(body(num_tokens=number))


def _invalid_utf8() -> Iterator[bytes]:
    for text in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"):
        packed = Raw(msgpack.packb(text.decode("latin-1"), use_bin_type=True))
        packed.body = bytes([0xA0 | len(text)]) + text
        for name in ("sample_id", "response", "route", "lang", "reference", "finish_reason"):
            yield envelope(body(**{name: packed}))
        yield envelope(body(meta=Raw(b"\x81\xa1a" + packed.body)))
        yield envelope(body(meta=Raw(b"\x81" + packed.body + b"\x01")))


def _oversized() -> Iterator[bytes]:
    yield envelope(b"\x00" * (wire.MAX_BODY_BYTES + 1))
    yield envelope(b"\x00" * 5_000_000)
    yield envelope(body(images=[b"x" * (wire.MAX_IMAGE_BYTES + 1)]))
    yield envelope(body(images=[b""] * 65))
    yield envelope(body(messages=[["user", ""]] * 513))
    yield envelope(body(sample_id="s" * 513))
    yield envelope(body(lang="l" * 513))
    yield envelope(msgpack.packb({"requests": [FIELDS] * (wire.MAX_REQUESTS + 1)}))
    yield envelope(msgpack.packb({"requests": []}))
    for name in ("request_id", "idempotency_key"):
        yield envelope(GOOD, **{name: "k" * 257})
        yield envelope(GOOD, **{name: "k" * 1_000_000})


def _addresses_of_images() -> Iterator[bytes]:
    for address in ("http://169.254.169.254/latest", "file:///etc/passwd", "data:,x", "//h/x"):
        yield envelope(body(images=[address]))


def _schema_versions() -> Iterator[bytes]:
    yield from (envelope(GOOD, schema_version=version) for version in (0, 1, 9, 2**32 - 1))


def _unknown_principles() -> Iterator[bytes]:
    for name in ("", "charm", "Safety", "safety\x00", "../safety", "safety\nother", "s" * 100_000):
        yield envelope(GOOD, principle=name)


def _broken_envelopes() -> Iterator[bytes]:
    good = envelope(GOOD)
    yield from (good[:length] for length in range(3, len(good), max(1, len(good) // 20)))
    yield from (b"\xff" * 10, b"\x0a\xff\xff\xff\xff\x0f", b"\x00", b"\x32" * 100, b"\x12\x01\xff")


CLASSES: dict[str, Callable[[], Iterator[bytes]]] = {
    "truncated body": _truncated,
    "trailing bytes": _trailing,
    "wrong type": _wrong_types,
    "missing field": _missing_fields,
    "unknown field": _unknown_fields,
    "duplicate key": _duplicate_keys,
    "number that is not finite": _not_finite,
    "extension type": _ext_types,
    "huge declared length": _huge_lengths,
    "deep nesting": _deep_nesting,
    "bomb": _bombs,
    "number out of range": _numbers_out_of_range,
    "invalid UTF-8": _invalid_utf8,
    "oversized": _oversized,
    "address in place of an image": _addresses_of_images,
    "other schema version": _schema_versions,
    "unknown principle": _unknown_principles,
    "broken envelope": _broken_envelopes,
}
