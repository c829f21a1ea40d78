"""The client side of the verifier door: a verifier in another process, as a ``ports.Verifier``.

Owns the channel, the deadline of a call and the distrust of its answer. Every failure of a call is
an INVALID verdict with its cause; nothing that did not come from a complete, matching answer
becomes a score. It does not know what an INVALID verdict leads to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from cluster import bearer_token, wire
from cluster.protos import verifier_pb2
from cluster.verifier_credentials import open_channel
from cluster.verifier_diagnosis import diagnose
from safeladder.config import TlsConfig
from safeladder.errors import ConfigError, VerifierUnavailableError
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

log = logging.getLogger(__name__)

CONNECT_DEADLINE_S = 5.0
MAX_DETAIL_CHARS = 300

_SERVICE: str = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
_OPTIONS = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A service that was restarted is found again within this time.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_CAUSES = {
    grpc.StatusCode.UNAVAILABLE: InvalidCause.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidCause.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: InvalidCause.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: InvalidCause.TIMEOUT,
}
"""All of these are worth another try; every other code is INVALID(error) for good."""


class _Failure(NamedTuple):
    """Why there is no verdict."""

    cause: InvalidCause
    detail: str
    retryable: bool = False


class GrpcVerifier:
    """A principle's verifier at ``address`` (``host:port``). ``start`` before anything else: the
    channel belongs to the event loop and the process that opened it."""

    def __init__(
        self,
        principle: str,
        address: str,
        timeout_s: float,
        token_file: Path | None = None,
        *,
        tls: TlsConfig | None = None,
        insecure: bool = False,
        fence: int = 0,
    ) -> None:
        self._principle = principle
        self._address = address
        self._timeout_s = timeout_s
        self._token_file = token_file
        self._tls = tls
        self._insecure = insecure
        self._fence = fence
        self._name = f"grpc://{address}"
        self._version = "unknown"
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What the service calls its verifier; the address before ``start``."""
        return self._name

    @property
    def version(self) -> str:
        """As the service said last."""
        return self._version

    @property
    def _where(self) -> str:
        return f"principles.{self._principle}.service"

    async def start(self) -> None:
        """Connect, and ask who answers; at most 5 s, and as much to find out why nobody does.

        Raises ``VerifierUnavailableError`` if nobody does, ``ConfigError`` for a certificate or
        token that cannot be used, and if the service does not serve this principle or this client.
        """
        if self._token_file is not None:
            token = bearer_token.read_token(self._token_file)
            self._metadata = ((bearer_token.METADATA_KEY, bearer_token.header(token)),)
        self._channel = open_channel(
            self._address, self._tls, self._insecure, self._where, _OPTIONS
        )
        request = verifier_pb2.DescribeRequest(
            schema_version=wire.SCHEMA_VERSION, principle=self._principle
        )
        try:
            raw = await self._call("Describe", request, CONNECT_DEADLINE_S)
            described = _parse(verifier_pb2.DescribeResponse, raw)
            if not described.verifier or described.principle != self._principle:
                raise wire.WireError("it does not say which verifier it is")
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise await self._start_error(error) from error
        except wire.WireError as error:
            await self.close()
            raise VerifierUnavailableError(
                f"{self._address} does not answer as a verifier service: {error}"
            ) from error
        self._name, self._version = described.verifier, described.verifier_version

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order, within ``timeout_s``. Never raises for a call
        that fails. A batch above the limits of a message goes out as several calls.

        All verdicts are of one version of one verifier: if the calls were answered by several, as
        in a redeployment, none of the answers counts and all may be asked again.
        """
        found: dict[int, Verdict | _Failure] = {}
        positions: list[int] = []
        items: list[bytes] = []
        for position, request in enumerate(requests):
            try:
                items.append(wire.pack_request(request))
                positions.append(position)
            except wire.WireError as error:
                found[position] = _Failure(InvalidCause.ERROR, f"cannot be sent: {error}")
        calls = wire.split_requests(items)
        answers = await asyncio.gather(
            *(
                self._ask(
                    [requests[positions[i]] for i in call],
                    wire.join_requests([items[i] for i in call]),
                )
                for call in calls
            )
        )
        mixed = self._judges_differ(answers)
        for call, answer in zip(calls, answers, strict=True):
            for number, i in enumerate(call):
                if isinstance(answer, _Failure):
                    found[positions[i]] = answer
                else:
                    found[positions[i]] = mixed or answer.verdicts[number]
        # Only now, so that what failed bears the version that the others have.
        return [
            self._invalid(request, one) if isinstance(one := found[position], _Failure) else one
            for position, request in enumerate(requests)
        ]

    async def close(self) -> None:
        """Give the connection back."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _ask(self, requests: Sequence[ScoreRequest], body: bytes) -> wire.Answer | _Failure:
        keys = [request.idempotency_key(self._name, self._version) for request in requests]
        envelope = verifier_pb2.Envelope(
            schema_version=wire.SCHEMA_VERSION,
            request_id=uuid.uuid4().hex,
            idempotency_key=hashlib.sha256("\n".join(keys).encode()).hexdigest(),
            fence=self._fence,
            principle=self._principle,
            payload=body,
        )
        try:
            raw = await self._call("Score", envelope, self._timeout_s)
            answer = self._accept(raw, envelope, requests)
        except grpc.aio.AioRpcError as error:
            cause = _CAUSES.get(error.code())
            retryable = cause is not None
            return _Failure(cause or InvalidCause.ERROR, _describe(error), retryable)
        except wire.WireError as error:
            return _Failure(InvalidCause.MALFORMED, f"answer refused: {error}")
        self._notice_version(answer)
        return answer

    def _accept(self, raw: bytes, sent: Any, requests: Sequence[ScoreRequest]) -> wire.Answer:
        """The answer, if it is one to this very call. Raises ``WireError``."""
        reply = _parse(verifier_pb2.Envelope, raw)
        for field in ("schema_version", "request_id", "idempotency_key", "fence", "principle"):
            if getattr(reply, field) != getattr(sent, field):
                raise wire.WireError(f"{field} is not that of the request")
        answer = wire.unpack_answer(reply.payload, self._principle)
        if answer.request_sha256 != wire.body_digest(sent.payload):
            raise wire.WireError("request_sha256 is the digest of another request")
        if len(answer.verdicts) != len(requests):
            raise wire.WireError(f"{len(answer.verdicts)} verdicts for {len(requests)} samples")
        for position, (request, verdict) in enumerate(zip(requests, answer.verdicts, strict=True)):
            if verdict.sample_id != request.sample_id:
                raise wire.WireError(f"verdicts[{position}] is of another sample")
        return answer

    def _judges_differ(self, answers: Sequence[wire.Answer | _Failure]) -> _Failure | None:
        judges = {
            f"{answer.verifier} version {answer.verifier_version}"
            for answer in answers
            if not isinstance(answer, _Failure)
        }
        if len(judges) < 2:
            return None
        detail = f"one batch was judged by {' and '.join(sorted(judges))}"
        return _Failure(InvalidCause.UNAVAILABLE, detail, retryable=True)

    def _notice_version(self, answer: wire.Answer) -> None:
        if (answer.verifier, answer.verifier_version) != (self._name, self._version):
            log.warning(
                "principle %s: %s now answers as %s version %s, before as %s version %s",
                *(self._principle, self._address, answer.verifier, answer.verifier_version),
                *(self._name, self._version),
            )
            self._name, self._version = answer.verifier, answer.verifier_version

    async def _call(self, method: str, request: Any, timeout_s: float) -> bytes:
        """The raw answer: it is parsed where a bad one can be told from a failed call."""
        if self._channel is None:
            raise RuntimeError(f"start() the client of {self._address} before using it")
        call: Any = self._channel.unary_unary(
            f"/{_SERVICE}/{method}", request_serializer=type(request).SerializeToString
        )
        raw: bytes = await call(request, timeout=timeout_s, metadata=self._metadata)
        return raw

    def _invalid(self, request: ScoreRequest, failure: _Failure) -> Verdict:
        return Verdict(
            sample_id=request.sample_id,
            principle=self._principle,
            verifier=self._name,
            verifier_version=self._version,
            status=VerdictStatus.INVALID,
            evidence=failure.detail[:MAX_DETAIL_CHARS],
            cause=failure.cause,
            retryable=failure.retryable,
        )

    async def _start_error(
        self, error: grpc.aio.AioRpcError
    ) -> ConfigError | VerifierUnavailableError:
        where = self._where
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return ConfigError(
                f"{where}.address: {self._address} does not serve {self._principle!r} "
                f"({error.details()})"
            )
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return ConfigError(f"{where}.token_file: {self._address} refuses the token")
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            return ConfigError(
                f"{where}.tls.cert_file: {self._address} serves no name of this certificate"
            )
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            found = await asyncio.to_thread(
                diagnose, self._address, self._tls, where, _describe(error)
            )
            if found is not None:
                return found
        return VerifierUnavailableError(
            f"no verifier service answers at {self._address} ({_describe(error)}); start one with "
            f"`safeladder serve-verifier CONFIG --principle {self._principle} --bind "
            f"{self._address}`, or correct {where}.address"
        )


def _parse(message: Any, raw: bytes) -> Any:
    try:
        return message.FromString(raw)
    except DecodeError as error:
        raise wire.WireError("not a message of the service") from error


def _describe(error: grpc.aio.AioRpcError) -> str:
    """Code, reason (of a rich status, if there is one) and text of a failed call."""
    reason = ""
    try:
        status = rpc_status.from_call(error)
        details = status.details if status is not None else ()
        for detail in details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                reason = f" {info.reason}"
    except (ValueError, DecodeError):
        reason = " with a status that contradicts itself"
    return f"{error.code().name}{reason}: {error.details()}"
