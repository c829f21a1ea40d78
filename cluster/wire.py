"""MessagePack bodies of the verifier service, and the records they carry.

Bytes come from another trust domain. They are unpacked under limits (sizes, nesting, number of
items), then fitted to typed structures that know every field; duplicate map keys and non-finite
numbers, which neither library refuses, are refused here by hand. What does not fit is a
``WireError`` that names the field. This module knows no gRPC.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

import msgpack  # type: ignore[import-untyped]
import msgspec

from safeladder.records import (
    FinishReason,
    InvalidCause,
    Message,
    ScoreRequest,
    Verdict,
    VerdictStatus,
)

SCHEMA_VERSION = 1
"""Raised with every change of a body's layout; other versions are refused."""
MAX_BODY_BYTES = 4 * 1024 * 1024 - 64 * 1024
"""gRPC's default limit of 4 MiB for a message, less room for the envelope."""
MAX_REQUESTS = 128
"""Samples in one call."""
MAX_VALUES_PER_SAMPLE = 2048
"""Values of one sample, all levels together. ``MAX_REQUESTS`` times as many bound the memory that
a hostile body can cost."""
MAX_LENGTH = 4096
"""Values in one list or map."""
MAX_DEPTH = 16
"""Levels of nesting inside ``meta``."""
MAX_EVIDENCE_CHARS = 4096
"""Longer evidence is cut by the sender, so that an answer always fits into one message."""

_HEADER_BYTES = 64
_MAX_VALUES = MAX_VALUES_PER_SAMPLE * MAX_REQUESTS
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Label = Annotated[str, msgspec.Meta(max_length=512)]
_Evidence = Annotated[str, msgspec.Meta(max_length=MAX_EVIDENCE_CHARS)]
_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class WireError(ValueError):
    """Bytes that are no body of ours, or a record that no body can carry; names the field."""


class _RequestBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sample_id: _Name
    attempt: _Count
    messages: Annotated[list[tuple[str, str]], msgspec.Meta(max_length=512)]
    response: str
    finish_reason: FinishReason
    num_tokens: _Count
    route: _Name
    reference: str | None
    lang: _Label
    images: Annotated[list[bytes], msgspec.Meta(max_length=64)]
    meta: dict[str, Any]


class _RequestsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests: Annotated[list[_RequestBody], msgspec.Meta(min_length=1, max_length=MAX_REQUESTS)]


class _VerdictBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sample_id: _Name
    status: VerdictStatus
    score: float | None
    label: _Label | None
    evidence: _Evidence | None
    cause: InvalidCause | None
    retryable: bool
    latency_ms: float


class _AnswerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_sha256: _Hex
    verifier: _Name
    verifier_version: _Name
    verdicts: Annotated[list[_VerdictBody], msgspec.Meta(max_length=MAX_REQUESTS)]


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
    item = _pack(
        {
            "sample_id": request.sample_id,
            "attempt": request.attempt,
            "messages": [tuple(message) for message in request.messages],
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
    _requests(join_requests([item]), MAX_VALUES_PER_SAMPLE)
    return item


def join_requests(items: Sequence[bytes]) -> bytes:
    """The request body of samples packed by ``pack_request``."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(1)
    packer.pack("requests")
    packer.pack_array_header(len(items))
    return b"".join((packer.bytes(), *items))


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
    return [
        ScoreRequest(
            sample_id=item.sample_id,
            attempt=item.attempt,
            messages=tuple(Message(role, content) for role, content in item.messages),
            response=item.response,
            finish_reason=item.finish_reason,
            num_tokens=item.num_tokens,
            route=item.route,
            reference=item.reference,
            lang=item.lang,
            images=tuple(item.images),
            meta=item.meta,
        )
        for item in _requests(body, _MAX_VALUES)
    ]


def _requests(body: bytes, max_values: int) -> list[_RequestBody]:
    requests = _fit(_unpack(body, max_values), _RequestsBody).requests
    for position, item in enumerate(requests):
        _check_json(item.meta, f"requests[{position}].meta", MAX_DEPTH)
    return requests


def pack_answer(
    request_sha256: str, verifier: str, verifier_version: str, verdicts: Sequence[Verdict]
) -> bytes:
    """The response body. Principle, verifier and version are said once, for all verdicts."""
    return _pack(
        {
            "request_sha256": request_sha256,
            "verifier": verifier,
            "verifier_version": verifier_version,
            "verdicts": [_verdict_fields(verdict) for verdict in verdicts],
        }
    )


def unpack_answer(body: bytes, principle: str) -> Answer:
    """The answer of a verifier of ``principle``. Raises ``WireError``, also for a verdict that no
    record allows: a score outside [0, 1], a failure with a number, an INVALID without cause."""
    answer = _fit(_unpack(body, _MAX_VALUES), _AnswerBody)
    return Answer(
        request_sha256=answer.request_sha256,
        verifier=answer.verifier,
        verifier_version=answer.verifier_version,
        verdicts=tuple(
            _verdict(item, f"verdicts[{position}]", principle, answer)
            for position, item in enumerate(answer.verdicts)
        ),
    )


def _verdict_fields(verdict: Verdict) -> Mapping[str, Any]:
    evidence = verdict.evidence
    return {
        "sample_id": verdict.sample_id,
        "status": verdict.status.value,
        "score": verdict.score,
        "label": verdict.label,
        "evidence": None if evidence is None else evidence[:MAX_EVIDENCE_CHARS],
        "cause": None if verdict.cause is None else verdict.cause.value,
        "retryable": verdict.retryable,
        "latency_ms": verdict.latency_ms,
    }


def _verdict(item: _VerdictBody, path: str, principle: str, answer: _AnswerBody) -> Verdict:
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
        )
    except ValueError as error:
        raise WireError(f"{path}: {error}") from error


def _pack(value: Mapping[str, Any]) -> bytes:
    try:
        body: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"not MessagePack: {error}") from error
    return body


class _Counter:
    """Hooks of the unpacker: counts every value of a body and refuses what a dict would hide."""

    def __init__(self, max_values: int) -> None:
        self._max = self._left = max_values

    def list(self, values: list[Any]) -> list[Any]:
        self._take(len(values))
        return values

    def pairs(self, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        self._take(len(pairs))
        fields: dict[str, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str):
                raise WireError(f"a map key is {type(key).__name__}, not text")
            if key in fields:
                raise WireError(f"duplicate map key {key[:100]!r}")
            fields[key] = value
        return fields

    def _take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise WireError(f"more than {self._max} values in one body")


def _unpack(body: bytes, max_values: int) -> object:
    if len(body) > MAX_BODY_BYTES:
        raise WireError(f"body of {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    counter = _Counter(max_values)
    try:
        return msgpack.unpackb(
            body,
            strict_map_key=True,
            max_ext_len=0,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            list_hook=counter.list,
            object_pairs_hook=counter.pairs,
        )
    except WireError:
        raise
    except ValueError as error:  # of which msgpack's own errors are children
        raise WireError(f"not MessagePack: {str(error) or type(error).__name__}") from error


_Body = TypeVar("_Body", bound=msgspec.Struct)


def _fit(value: object, body: type[_Body]) -> _Body:
    try:
        return msgspec.convert(value, body, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise WireError(str(error)[:200]) from error


def _check_json(value: object, path: str, depth: int) -> None:
    """Refuses what JSON has no word for: bytes, non-finite numbers, bottomless nesting."""
    if isinstance(value, bytes):
        _refuse(path, "bytes, not a JSON value")
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(path, f"{value}, not a finite number")
    if isinstance(value, dict | list) and depth == 0:
        _refuse(path, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_json(item, f"{path}.{key[:50]}", depth - 1)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _check_json(item, f"{path}[{position}]", depth - 1)


def _refuse(path: str, problem: str) -> NoReturn:
    raise WireError(f"{path} is {problem}")
