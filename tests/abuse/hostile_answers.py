"""Answers that no client should believe: one generator for each class of lie.

A lie turns the honest reply to a call (envelope and unpacked body) into the bytes that are sent.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import msgpack

Lie = Callable[[Any, dict[str, Any]], bytes]


def _send(reply: Any, payload: bytes) -> bytes:
    reply.payload = payload
    return bytes(reply.SerializeToString())


def _body(change: Callable[[dict[str, Any]], Any]) -> Lie:
    """A lie inside the body; the envelope is honest."""

    def lie(reply: Any, body: dict[str, Any]) -> bytes:
        changed = deepcopy(body)
        change(changed)
        return _send(reply, msgpack.packb(changed))

    return lie


def _verdict(**fields: Any) -> Lie:
    return _body(lambda body: body["verdicts"][1].update(fields))


def _raw(make: Callable[[bytes], bytes]) -> Lie:
    """A lie about the body's bytes."""
    return lambda reply, body: _send(reply, make(msgpack.packb(body)))


def _envelope(**fields: Any) -> Lie:
    def lie(reply: Any, body: dict[str, Any]) -> bytes:
        for name, value in fields.items():
            setattr(reply, name, value)
        return _send(reply, msgpack.packb(body))

    return lie


def _counts() -> Iterator[Lie]:
    yield _body(lambda body: body["verdicts"].pop())
    yield _body(lambda body: body["verdicts"].clear())
    yield _body(lambda body: body["verdicts"].append(body["verdicts"][0]))
    yield _body(lambda body: body["verdicts"].extend(body["verdicts"] * 200))


def _order() -> Iterator[Lie]:
    yield _body(lambda body: body["verdicts"].reverse())
    yield _body(lambda body: body["verdicts"].insert(0, body["verdicts"].pop()))
    yield _body(lambda body: body["verdicts"].__setitem__(1, body["verdicts"][0]))


def _samples() -> Iterator[Lie]:
    for name in ("0/3/9", "9/9/9", "", "0/3/1 ", "x" * 600, 1, None):
        yield _verdict(sample_id=name)


def _scores() -> Iterator[Lie]:
    for score in (math.nan, math.inf, -math.inf, -0.1, 1.0000001, 1e308, -1, 2):
        yield _verdict(score=score)
    for score in (None, "1.0", True, [1.0], {"value": 1.0}, b"1"):
        yield _verdict(score=score)


def _states() -> Iterator[Lie]:
    for cause in ("timeout", "error", "abstain", "malformed", "out_of_range", "unavailable"):
        yield _verdict(status="invalid", cause=cause, score=1.0)
    yield _verdict(status="invalid", cause=None, score=None)
    yield _verdict(status="invalid", cause="mood", score=None)
    yield _verdict(status="not_applicable", score=1.0)
    yield _verdict(status="not_applicable", score=None, cause="error")
    yield _verdict(status="ok", cause="error")
    yield from (_verdict(status=status) for status in ("fine", "OK", "", None, 0))


def _fields() -> Iterator[Lie]:
    names = "sample_id", "status", "score", "label", "evidence", "cause", "retryable"
    for name in (*names, "disagreement"):
        yield _body(lambda body, name=name: body["verdicts"][1].pop(name))
    yield _verdict(reward=1.0)
    yield _body(lambda body: body.update(reward=1.0))
    yield _verdict(latency_ms=math.nan)
    yield _verdict(latency_ms=-1.0)
    yield from (_verdict(disagreement=one) for one in (math.nan, math.inf, -0.1, 1.1, "0.5", True))
    yield _verdict(evidence="e" * 5000)
    yield _verdict(retryable="yes")
    yield _body(lambda body: body.update(verdicts={}))


def _other_requests() -> Iterator[Lie]:
    for digest in ("0" * 64, "F" * 64, "", "0" * 63, None):
        yield _body(lambda body, digest=digest: body.update(request_sha256=digest))


def _nameless() -> Iterator[Lie]:
    for name in ("", None, "v" * 600):
        yield _body(lambda body, name=name: body.update(verifier=name))
        yield _body(lambda body, name=name: body.update(verifier_version=name))


def _replayed() -> Iterator[Lie]:
    for name in ("request_id", "idempotency_key"):
        yield from (_envelope(**{name: value}) for value in ("", "earlier", "x" * 1000))


def _fences() -> Iterator[Lie]:
    yield from (_envelope(fence=fence) for fence in (0, 2, 4, 2**63))


def _principles() -> Iterator[Lie]:
    yield from (_envelope(principle=name) for name in ("", "helpfulness", "Safety"))


def _schemas() -> Iterator[Lie]:
    yield from (_envelope(schema_version=version) for version in (0, 1, 3, 99))


def _bytes() -> Iterator[Lie]:
    for part in range(0, 100, 5):
        yield _raw(lambda body, part=part: body[: len(body) * part // 100])
    yield _raw(lambda body: body + b"\x00")
    yield _raw(lambda body: b"<html>502 Bad Gateway</html>")
    yield _raw(lambda body: b"\x91" * 100_000)
    yield _raw(lambda body: b"\xdd" + struct.pack(">I", 2**32 - 1))
    yield _raw(lambda body: b"\xdd" + struct.pack(">I", 10**6) + b"\x90" * 10**6)
    yield _raw(lambda body: b"\x85\xa8verifier\xa1w" + body[1:])
    yield _raw(lambda body: body.replace(b"\x89\xa9sample_id", b"\x8a\xa5score\x01\xa9sample_id"))
    yield _raw(lambda body: body.replace(b"safety", b"\xff" * 6).replace(b"images", b"\xc3" * 6))
    yield lambda reply, body: b"\xff\xff\xff"
    yield lambda reply, body: b""


CLASSES: dict[str, Callable[[], Iterator[Lie]]] = {
    "answer: wrong count": _counts,
    "answer: swapped order": _order,
    "answer: another sample": _samples,
    "answer: score that is none": _scores,
    "answer: status against score": _states,
    "answer: wrong fields": _fields,
    "answer: of another request": _other_requests,
    "answer: verifier without a name": _nameless,
    "answer: replayed": _replayed,
    "answer: stale fence": _fences,
    "answer: another principle": _principles,
    "answer: other schema version": _schemas,
    "answer: broken bytes": _bytes,
}
