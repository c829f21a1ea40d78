"""Why a call is not served: a closed list of reasons, each with its gRPC code, as a rich status.

The texts are ours and safe to send; no text of an exception gets into one.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

ERROR_DOMAIN = "safeladder"
MIN_RETRY_AFTER_S = 1
MAX_RETRY_AFTER_S = 60


class Reason(StrEnum):
    """Closed list of ``ErrorInfo.reason``: what a client may branch on."""

    MALFORMED_BODY = "MALFORMED_BODY"
    UNKNOWN_SCHEMA_VERSION = "UNKNOWN_SCHEMA_VERSION"
    UNKNOWN_PRINCIPLE = "UNKNOWN_PRINCIPLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    OVERLOADED = "OVERLOADED"
    INTERNAL = "INTERNAL"


_CODES = {
    Reason.MALFORMED_BODY: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_SCHEMA_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNKNOWN_PRINCIPLE: grpc.StatusCode.NOT_FOUND,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    Reason.DEADLINE_TOO_SHORT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class RefusedError(Exception):
    """A call that is not served; ``text`` is ours and safe to send."""

    def __init__(self, reason: Reason, text: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self._retry_after_s = retry_after_s

    async def abort(self, context: Any) -> None:
        """End the call with a rich status. Always raises."""
        code = _CODES[self.reason]
        details = [error_details_pb2.ErrorInfo(reason=self.reason.value, domain=ERROR_DOMAIN)]
        if self.reason is Reason.OVERLOADED:
            seconds = math.ceil(self._retry_after_s)
            delay = Duration(seconds=min(max(seconds, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=code.value[0], message=self.text)
        for detail in details:
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        metadata = rpc_status.to_status(status).trailing_metadata
        await context.abort(code, self.text, metadata)
