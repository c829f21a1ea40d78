"""The one way into the service: who may call, and what a failure may say.

A token is checked when a call's headers are there, before its body is awaited: a stranger cannot
hold a call open. Names on a certificate are checked with the body there, since gRPC shows them no
earlier; by then the handshake has already turned strangers away. Whatever a method raises becomes a
reason of the closed list. A plain health check stays open to probes; health streams do not.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cluster import bearer_token
from cluster.service_metrics import ServiceMetrics
from cluster.verifier_credentials import is_allowed
from cluster.verifier_refusals import Reason, RefusedError

log = logging.getLogger(__name__)

OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})
_Method = Callable[[Any, Any], Awaitable[Any]]
_NO_TOKEN = "no valid bearer token; set service.token_file to the service's token"
_NO_NAME = "no name of this client's certificate is served; see service.tls.allowed_names"


class Guard(grpc.GenericRpcHandler):
    """Stands before every method. ``allowed_names`` None admits any certificate, or none.

    Services are added to it as they would be to a server; it is the server's only handler. That
    costs a call less than an interceptor would.
    """

    def __init__(
        self, token: str | None, allowed_names: tuple[str, ...] | None, metrics: ServiceMetrics
    ) -> None:
        self._token = token
        self._names = None if allowed_names is None else [name.encode() for name in allowed_names]
        self._metrics = metrics
        self._services: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, Any] = {}
        # The stream form answers without waiting for the body of the call.
        self._stranger: Any = grpc.stream_stream_rpc_method_handler(self._refuse_stranger)

    def add_generic_rpc_handlers(self, services: Iterable[grpc.GenericRpcHandler]) -> None:
        """As of a server: what generated code calls."""
        self._services += services

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As of a server: a second way to the same methods, not needed."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call whose headers are there; None for a method that does not exist."""
        method = handler_call_details.method
        if method not in OPEN_METHODS and not self._has_token(handler_call_details):
            return self._stranger
        handler = self._handlers.get(method)
        if handler is None:
            found = (service.service(handler_call_details) for service in self._services)
            inner = next((one for one in found if one is not None), None)
            if inner is not None:  # a method that exists: their number is bounded
                handler = self._handlers[method] = self._wrap(method, inner)
        return handler

    def _has_token(self, details: grpc.HandlerCallDetails) -> bool:
        if self._token is None:
            return True
        sent = dict(details.invocation_metadata or ()).get(bearer_token.METADATA_KEY)
        return bearer_token.is_authorized(sent, self._token)

    def _wrap(self, method: str, handler: Any) -> Any:
        if handler.unary_unary is not None:
            # The body is parsed inside: gRPC would answer bad bytes with the exception.
            return grpc.unary_unary_rpc_method_handler(
                self._guarded(method, handler.unary_unary, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                partial(self._stream, handler.stream_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return None  # health streams: a caller could hold all places of the server

    def _guarded(
        self, method: str, answer: _Method, parse: Callable[[bytes], Any]
    ) -> Callable[[bytes, Any], Awaitable[Any]]:
        """A function of its own for each method: gRPC looks at every call whether its handler is
        a coroutine function, which takes long for a ``partial``."""
        names = None if method in OPEN_METHODS else self._names

        async def guarded(raw: bytes, context: Any) -> Any:
            request = None
            try:
                if names is not None:
                    self._require_name(context)
                request = _parsed(parse, raw)
                return await answer(request, context)
            except grpc.aio.AbortError:
                raise
            except RefusedError as refusal:
                await self._refuse(refusal, request, context)
            except Exception:  # the border: its text stays in our log
                log.exception("a call failed inside the service")
                failure = RefusedError(Reason.INTERNAL, "internal error; the service's log has it")
                await self._refuse(failure, request, context)

        return guarded

    async def _stream(
        self, stream: Callable[..., AsyncIterator[Any]], requests: Any, context: Any
    ) -> AsyncIterator[Any]:
        try:
            if self._names is not None:
                self._require_name(context)
        except RefusedError as refusal:
            await self._refuse(refusal, None, context)
        async for answer in stream(requests, context):
            yield answer

    def _require_name(self, context: Any) -> None:
        if not is_allowed(context, self._names or ()):
            raise RefusedError(Reason.FORBIDDEN, _NO_NAME)

    async def _refuse_stranger(self, requests: Any, context: Any) -> None:
        del requests
        await self._refuse(RefusedError(Reason.UNAUTHENTICATED, _NO_TOKEN), None, context)

    async def _refuse(self, refusal: RefusedError, request: Any, context: Any) -> None:
        self._metrics.count_call(getattr(request, "principle", ""), refusal.reason.value)
        await refusal.abort(context)


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError as error:
        raise RefusedError(Reason.MALFORMED_BODY, "not a message of this service") from error
