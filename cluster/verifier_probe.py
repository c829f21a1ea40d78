"""Asks a verifier service for its health without ever waiting: for a driver that must go on.

Owns what counts as unwell: a service that says so, or is silent several times in a row. What
follows is decided by who asks.
"""

from __future__ import annotations

import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from cluster.verifier_credentials import open_blocking_channel
from safeladder.config import ServiceConfig

PROBE_EVERY_S = 5.0
PROBE_DEADLINE_S = 5.0
MAX_SILENT_PROBES = 4
START_PATIENCE_S = 90.0
"""A service that has not answered yet may be silent for so long."""
_METHOD = "/grpc.health.v1.Health/Check"
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1_000)]


class HealthProbe:
    """``is_well`` again and again; ``close`` once. ``where`` is the dotted key of the service."""

    def __init__(self, address: str, service: ServiceConfig, where: str) -> None:
        self._channel = open_blocking_channel(
            address, service.tls, service.insecure, where, _OPTIONS
        )
        self._check: Any = self._channel.unary_unary(
            _METHOD,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._asked: Any = None
        self.restart()

    def restart(self) -> None:
        """Begin anew with the service's new process."""
        if self._asked is not None:
            self._asked.cancel()
        self._asked = None
        self._started_s = time.monotonic()
        self._next_s = self._started_s
        self._has_answered = False
        self._is_unfit = False
        self._num_silent = 0

    def is_well(self) -> bool:
        """What is known by now; asks again when it is time. Returns at once."""
        now_s = time.monotonic()
        if self._asked is not None and self._asked.done():
            self._read(self._asked)
            self._asked = None
        if self._asked is None and now_s >= self._next_s:
            self._next_s = now_s + PROBE_EVERY_S
            self._asked = self._check.future(
                health_pb2.HealthCheckRequest(), timeout=PROBE_DEADLINE_S, wait_for_ready=True
            )
        if self._is_unfit:
            return False
        is_starting = not self._has_answered and now_s < self._started_s + START_PATIENCE_S
        return is_starting or self._num_silent < MAX_SILENT_PROBES

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _read(self, asked: Any) -> None:
        if asked.code() is not grpc.StatusCode.OK:
            self._num_silent += 1
            return
        self._has_answered = True
        self._num_silent = 0
        self._is_unfit = asked.result().status != health_pb2.HealthCheckResponse.SERVING
