"""The server side of the verifier door: scores over gRPC, in a process of its own.

Owns limits, refusals, health and shutdown. Every refusal carries a reason of a closed list; no
text of an exception leaves the process. It imports neither Ray nor a model library, and does not
know what a verdict leads to. Traffic is not encrypted: bind to loopback, or to a private network
with ``insecure=True`` and a token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from cluster import bearer_token, service_process, wire
from cluster.protos import verifier_pb2, verifier_pb2_grpc
from cluster.shared_answers import SharedAnswers
from rewards.building import build_verifier
from rewards.deadline import score_with_deadline
from safeladder.config import Config
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.ports import Verifier
from safeladder.records import ScoreRequest

log = logging.getLogger(__name__)

SERVICE: str = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name
ERROR_DOMAIN = "safeladder"
MAX_DEADLINE_S = 3600.0
"""Upper bound of a call's time, also for a caller that sets no deadline."""
MIN_BUDGET_S = 0.02
"""A call with less time than this left is refused: nothing could be scored in it."""
RETRY_AFTER_S = 1
STOP_GRACE_S = 3.0

_HEALTH_PREFIX = "/grpc.health.v1.Health/"
_RESERVED_CALLS = 32
_Method = Callable[[Any, Any], Awaitable[Any]]


class Reason(StrEnum):
    """Closed list of ``ErrorInfo.reason``: what a client may branch on."""

    MALFORMED_BODY = "MALFORMED_BODY"
    UNKNOWN_SCHEMA_VERSION = "UNKNOWN_SCHEMA_VERSION"
    UNKNOWN_PRINCIPLE = "UNKNOWN_PRINCIPLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    OVERLOADED = "OVERLOADED"
    INTERNAL = "INTERNAL"


_CODES = {
    Reason.MALFORMED_BODY: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_SCHEMA_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNKNOWN_PRINCIPLE: grpc.StatusCode.NOT_FOUND,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.DEADLINE_TOO_SHORT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class _RefusedError(Exception):
    """A call that is not served; ``text`` is ours and safe to send."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text

    async def abort(self, context: Any) -> None:
        """End the call with a rich status. Always raises."""
        code = _CODES[self.reason]
        details = [error_details_pb2.ErrorInfo(reason=self.reason.value, domain=ERROR_DOMAIN)]
        if self.reason is Reason.OVERLOADED:
            delay = Duration(seconds=RETRY_AFTER_S)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=code.value[0], message=self.text)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        metadata = rpc_status.to_status(status).trailing_metadata
        await context.abort(code, self.text, metadata)


class _Guard(grpc.aio.ServerInterceptor):
    """Every call passes here: the token is checked before it, and whatever it raises becomes a
    reason. Health stays open to probes."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if not self._admits(handler_call_details):
            return grpc.unary_unary_rpc_method_handler(_refuse_unauthenticated)
        if handler.unary_unary is None:  # streams are gRPC's own: reflection, health watch
            return handler
        # The body is parsed inside the guard: gRPC would answer bad bytes with the exception.
        return grpc.unary_unary_rpc_method_handler(
            partial(_guarded, handler.unary_unary, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _admits(self, details: grpc.HandlerCallDetails) -> bool:
        if self._token is None or details.method.startswith(_HEALTH_PREFIX):
            return True
        sent = dict(details.invocation_metadata or ()).get(bearer_token.METADATA_KEY)
        return bearer_token.is_authorized(sent, self._token)


async def _refuse_unauthenticated(request: Any, context: Any) -> None:
    del request
    text = "no valid bearer token; set service.token_file to the service's token"
    await _RefusedError(Reason.UNAUTHENTICATED, text).abort(context)


async def _guarded(method: _Method, parse: Callable[[bytes], Any], raw: bytes, context: Any) -> Any:
    try:
        return await method(_parsed(parse, raw), context)
    except grpc.aio.AbortError:
        raise
    except _RefusedError as refusal:
        await refusal.abort(context)
    except Exception:  # the border: its text stays in our log
        log.exception("a call failed inside the service")
        text = "internal error; the service's log has it"
        await _RefusedError(Reason.INTERNAL, text).abort(context)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise _RefusedError(Reason.MALFORMED_BODY, "not a message of this service") from error


class _Servicer:
    """The two methods of ``verifier.proto``."""

    def __init__(self, verifiers: Mapping[str, Verifier], max_concurrent: int) -> None:
        self._verifiers = verifiers
        self._max_concurrent = max_concurrent
        self._num_running = 0
        self.answers = SharedAnswers()

    async def Describe(self, request: Any, context: Any) -> Any:
        """Name and version of the verifier of a principle."""
        del context
        verifier = self._find(request)
        return verifier_pb2.DescribeResponse(
            schema_version=wire.SCHEMA_VERSION,
            principle=request.principle,
            verifier=verifier.name,
            verifier_version=verifier.version,
        )

    async def Score(self, request: Any, context: Any) -> Any:
        """Verdicts of a batch, as many and in the same order."""
        if self._num_running >= self._max_concurrent:
            raise _RefusedError(Reason.OVERLOADED, f"{self._max_concurrent} calls are running")
        self._num_running += 1
        try:
            payload = await self._answer(request, _budget_s(context.time_remaining()))
        finally:
            self._num_running -= 1
        return verifier_pb2.Envelope(
            schema_version=wire.SCHEMA_VERSION,
            request_id=request.request_id,
            idempotency_key=request.idempotency_key,
            fence=request.fence,
            principle=request.principle,
            payload=payload,
        )

    async def _answer(self, request: Any, budget_s: float) -> bytes:
        verifier = self._find(request)
        try:
            samples = wire.unpack_requests(request.payload)
        except wire.WireError as error:
            raise _RefusedError(Reason.MALFORMED_BODY, str(error)) from error
        digest = wire.body_digest(request.payload)
        work = partial(_score, request.principle, verifier, samples, digest, budget_s)
        if not request.idempotency_key:
            return (await work())[0]
        # The digest in the key: a key used for another body never brings that body's answer.
        key = f"{request.principle}\n{digest}\n{request.idempotency_key}"
        return await self.answers.get(key, work)

    def _find(self, request: Any) -> Verifier:
        if request.schema_version != wire.SCHEMA_VERSION:
            raise _RefusedError(
                Reason.UNKNOWN_SCHEMA_VERSION,
                f"schema version {request.schema_version}, this service speaks "
                f"{wire.SCHEMA_VERSION}",
            )
        verifier = self._verifiers.get(request.principle)
        if verifier is None:
            served = ", ".join(sorted(self._verifiers))
            raise _RefusedError(Reason.UNKNOWN_PRINCIPLE, f"this service serves: {served}")
        return verifier


def _budget_s(remaining_s: float | None) -> float:
    """Time for scoring: what the caller has left, less a tenth (at most 0.5 s) for the way back."""
    remaining_s = MAX_DEADLINE_S if remaining_s is None else min(remaining_s, MAX_DEADLINE_S)
    budget_s = remaining_s - min(0.1 * remaining_s, 0.5)
    if budget_s < MIN_BUDGET_S:
        raise _RefusedError(Reason.DEADLINE_TOO_SHORT, "too little time is left to score")
    return budget_s


async def _score(
    principle: str,
    verifier: Verifier,
    samples: Sequence[ScoreRequest],
    digest: str,
    budget_s: float,
) -> tuple[bytes, bool]:
    verdicts = await score_with_deadline(verifier, samples, budget_s, principle=principle)
    body = wire.pack_answer(digest, verifier.name, verifier.version, verdicts)
    return body, not any(verdict.retryable for verdict in verdicts)


class VerifierServer:
    """A gRPC server over verifiers, principle → verifier. ``start`` once, ``stop`` once."""

    def __init__(
        self,
        verifiers: Mapping[str, Verifier],
        *,
        token: str | None = None,
        insecure: bool = False,
        max_concurrent: int = 64,
    ) -> None:
        self._verifiers = dict(verifiers)
        self._token = token
        self._insecure = insecure
        self._max_concurrent = max_concurrent
        self._servicer = _Servicer(self._verifiers, max_concurrent)
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self, bind: str) -> int:
        """Listen on ``host:port`` (port 0: a free one), get the verifiers ready, serve.

        Returns the port. Raises ``ConfigError`` for an address that may not be used,
        ``EnvironmentUnfitError`` for one that is taken, and what a verifier's ``start`` raises.
        """
        service_process.check_bind(bind, self._insecure)
        service_process.check_free(bind)
        server = self._build()
        try:
            port = server.add_insecure_port(bind)
        except RuntimeError as error:
            raise EnvironmentUnfitError(f"cannot listen on {bind}: {error}") from error
        self._server = server
        try:
            await asyncio.gather(*(verifier.start() for verifier in self._verifiers.values()))
        except BaseException:
            await self.stop(0)
            raise
        await server.start()
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls, let running ones end within ``grace_s``, close the verifiers."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace_s)
        await self._servicer.answers.close()
        for verifier in self._verifiers.values():
            await verifier.close()

    def _build(self) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[_Guard(self._token)],
            # Above our own limit, which answers with a reason; this one guards against floods.
            maximum_concurrent_rpcs=self._max_concurrent + _RESERVED_CALLS,
            options=[
                ("grpc.so_reuseport", 0),  # else two servers share a port without a word
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server


def run_service(
    config: Config,
    principles: Sequence[str] | None,
    bind: str,
    *,
    ready_file: Path | None = None,
    token_file: Path | None = None,
    insecure: bool = False,
    die_with_parent: bool = False,
) -> None:
    """Serve the verifiers of a config until SIGTERM or SIGINT; blocks.

    ``principles`` None serves all that name a verifier. ``ready_file`` gets ``host:port`` once
    calls are answered. ``token_file`` defaults to the principles' own ``service.token_file``.
    ``die_with_parent`` asks the kernel to kill this process when the thread that started it ends.
    Raises ``ConfigError``, ``EnvironmentUnfitError``, ``VerifierUnavailableError``.
    """
    if die_with_parent:
        service_process.die_with_parent()
    chosen = _choose(config, principles)
    token_file = token_file or _token_file(config, chosen)
    server = VerifierServer(
        {name: build_verifier(name, config.principles[name]) for name in chosen},
        token=None if token_file is None else bearer_token.read_token(token_file),
        insecure=insecure,
    )
    asyncio.run(_serve(server, bind, chosen, ready_file))


async def _serve(
    server: VerifierServer, bind: str, principles: Sequence[str], ready_file: Path | None
) -> None:
    port = await server.start(bind)
    asked_to_stop = service_process.stop_signal()
    address = f"{bind.rpartition(':')[0]}:{port}"
    try:
        if ready_file is not None:
            service_process.announce(address, ready_file)
        log.info("verifier service ready on %s, serves %s", address, ", ".join(principles))
        await asked_to_stop.wait()
    finally:
        await server.stop()


def _choose(config: Config, principles: Sequence[str] | None) -> list[str]:
    if principles is None:
        return [name for name, principle in config.principles.items() if principle.verifier]
    for name in principles:
        if name not in config.principles:
            known = ", ".join(sorted(config.principles))
            raise ConfigError(f"--principle {name}: not in `principles` of the config ({known})")
    return list(principles)


def _token_file(config: Config, principles: Sequence[str]) -> Path | None:
    services = [config.principles[name].service for name in principles]
    files = {None if service is None else service.token_file for service in services}
    if len(files) > 1:
        raise ConfigError(
            "these principles name different service.token_file values; "
            "serve them one by one with --principle, or give --token-file"
        )
    return next(iter(files), None)
