"""MessagePack bodies of the verifier service, and the records they carry.

Owns the fields of both bodies and their limits; ``bounded_msgpack`` holds strangers' bytes to them.
This module knows no gRPC.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from cluster.bounded_msgpack import MAX_DEPTH as MAX_DEPTH
from cluster.bounded_msgpack import Buffer, StructReader, pack, read_json_map
from cluster.bounded_msgpack import WireError as WireError
from safeladder.records import (
    FinishReason,
    InvalidCause,
    Message,
    ScoreRequest,
    Verdict,
    VerdictStatus,
)

SCHEMA_VERSION = 2
"""Raised with every change of a body's layout; other versions are refused."""
MAX_BODY_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""gRPC's default limit of 4 MiB for a message, less room for the envelope."""
MAX_REQUESTS = 128
"""Samples in one call."""
MAX_VALUES_PER_SAMPLE = 2048
"""Values inside one sample's ``meta``, all levels together. They are what a hostile body can make
expensive."""
MAX_IMAGE_BYTES = 3 * 1024 * 1024
"""One encoded image. Images travel as bytes: nothing is ever fetched from an address."""
MAX_EVIDENCE_CHARS = 4096
"""Longer evidence is cut by the sender, so that an answer always fits into one message."""
MAX_LABEL_CHARS = 512
"""As with evidence."""

_HEADER_BYTES = 64
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Label = Annotated[str, msgspec.Meta(max_length=MAX_LABEL_CHARS)]
_Evidence = Annotated[str, msgspec.Meta(max_length=MAX_EVIDENCE_CHARS)]
_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Image = Annotated[bytes, msgspec.Meta(max_length=MAX_IMAGE_BYTES)]


class _RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    sample_id: _Name
    attempt: _Count
    messages: Annotated[tuple[Message, ...], msgspec.Meta(max_length=512)]
    response: str
    finish_reason: FinishReason
    num_tokens: _Count
    route: _Name
    reference: str | None
    lang: _Label
    images: Annotated[tuple[_Image, ...], msgspec.Meta(max_length=64)]
    meta: msgspec.Raw


class _RequestsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    requests: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_REQUESTS)]


class _VerdictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    sample_id: _Name
    status: VerdictStatus
    score: float | None
    label: _Label | None
    evidence: _Evidence | None
    cause: InvalidCause | None
    retryable: bool
    latency_ms: float
    disagreement: float | None


class _AnswerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_sha256: _Hex
    verifier: _Name
    verifier_version: _Name
    verdicts: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_REQUESTS)]


_REQUESTS = StructReader(_RequestsBody)
_REQUEST = StructReader(_RequestBody)
_ANSWER = StructReader(_AnswerBody)
_VERDICT = StructReader(_VerdictBody)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decoded response body."""

    request_sha256: str
    """Digest of the request body that was answered."""
    verifier: str
    verifier_version: str
    verdicts: tuple[Verdict, ...]


def body_digest(body: bytes) -> str:
    """Hex SHA-256 of a body: the answer echoes it, so that no other question's answer passes."""
    return hashlib.sha256(body).hexdigest()


def pack_request(request: ScoreRequest) -> bytes:
    """One sample as MessagePack, an element for ``join_requests``.

    Read back once, by the rules of the other end: a sample that would be refused there costs a
    ``WireError`` here, and not the whole call.
    """
    item = pack(
        {
            "sample_id": request.sample_id,
            "attempt": request.attempt,
            "messages": request.messages,
            "response": request.response,
            "finish_reason": request.finish_reason,
            "num_tokens": request.num_tokens,
            "route": request.route,
            "reference": request.reference,
            "lang": request.lang,
            "images": request.images,
            "meta": dict(request.meta),
        }
    )
    if len(item) > MAX_BODY_BYTES - _HEADER_BYTES:
        raise WireError(f"body of {len(item)} bytes, the limit is {MAX_BODY_BYTES}")
    _request(item, "request")
    return item


def join_requests(items: Sequence[bytes]) -> bytes:
    """The request body of samples packed by ``pack_request``."""
    return pack({"requests": [msgspec.Raw(item) for item in items]})


def split_requests(items: Sequence[bytes]) -> list[list[int]]:
    """Positions of ``items``, in order, cut into calls that keep every limit of a body."""
    calls: list[list[int]] = []
    room = 0
    for position, item in enumerate(items):
        if not calls or len(item) > room or len(calls[-1]) == MAX_REQUESTS:
            calls.append([])
            room = MAX_BODY_BYTES - _HEADER_BYTES
        calls[-1].append(position)
        room -= len(item)
    return calls


def unpack_requests(body: bytes) -> list[ScoreRequest]:
    """The samples of a request body. Raises ``WireError``."""
    _check_size(body)
    items = _REQUESTS.read(body, "body").requests
    return [_request(memoryview(raw), f"requests[{i}]") for i, raw in enumerate(items)]


def _request(body: Buffer, path: str) -> ScoreRequest:
    item: _RequestBody = _REQUEST.read(body, path)
    return ScoreRequest(
        sample_id=item.sample_id,
        attempt=item.attempt,
        messages=item.messages,
        response=item.response,
        finish_reason=item.finish_reason,
        num_tokens=item.num_tokens,
        route=item.route,
        reference=item.reference,
        lang=item.lang,
        images=item.images,
        meta=read_json_map(memoryview(item.meta), f"{path}.meta", MAX_VALUES_PER_SAMPLE),
    )


def pack_answer(
    request_sha256: str, verifier: str, verifier_version: str, verdicts: Sequence[Verdict]
) -> bytes:
    """The response body. Principle, verifier and version are said once, for all verdicts."""
    return pack(
        {
            "request_sha256": request_sha256,
            "verifier": verifier,
            "verifier_version": verifier_version,
            "verdicts": [_verdict_body(verdict) for verdict in verdicts],
        }
    )


def unpack_answer(body: bytes, principle: str) -> Answer:
    """The answer of a verifier of ``principle``. Raises ``WireError``, also for a verdict that no
    record allows: a score outside [0, 1], a failure with a number, an INVALID without cause."""
    _check_size(body)
    answer: _AnswerBody = _ANSWER.read(body, "body")
    return Answer(
        request_sha256=answer.request_sha256,
        verifier=answer.verifier,
        verifier_version=answer.verifier_version,
        verdicts=tuple(
            _verdict(memoryview(raw), f"verdicts[{position}]", principle, answer)
            for position, raw in enumerate(answer.verdicts)
        ),
    )


def _check_size(body: bytes) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"body of {len(body)} bytes, the limit is {MAX_BODY_BYTES}")


def _verdict_body(verdict: Verdict) -> _VerdictBody:
    label, evidence = verdict.label, verdict.evidence
    return _VerdictBody(
        sample_id=verdict.sample_id,
        status=verdict.status,
        score=verdict.score,
        label=None if label is None else _sendable(label[:MAX_LABEL_CHARS]),
        evidence=None if evidence is None else _sendable(evidence[:MAX_EVIDENCE_CHARS]),
        cause=verdict.cause,
        retryable=verdict.retryable,
        latency_ms=verdict.latency_ms,
        disagreement=verdict.disagreement,
    )


def _verdict(body: Buffer, path: str, principle: str, answer: _AnswerBody) -> Verdict:
    item: _VerdictBody = _VERDICT.read(body, path)
    if not math.isfinite(item.latency_ms) or item.latency_ms < 0:
        raise WireError(f"{path}.latency_ms is {item.latency_ms}, not a time")
    try:
        return Verdict(
            sample_id=item.sample_id,
            principle=principle,
            verifier=answer.verifier,
            verifier_version=answer.verifier_version,
            status=item.status,
            score=item.score,
            label=item.label,
            evidence=item.evidence,
            cause=item.cause,
            retryable=item.retryable,
            latency_ms=item.latency_ms,
            disagreement=item.disagreement,
        )
    except ValueError as error:
        raise WireError(f"{path}: {error}") from error


def _sendable(text: str) -> str:
    """Without lone surrogates, which a model's reply may hold and no UTF-8 can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
