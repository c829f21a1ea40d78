"""A verifier service: a gRPC server over verifiers, in a process of its own.

Owns address, limits of connections, health and shutdown. Who may call stands in
``verifier_guard``, what a call does in ``verifier_methods``. It imports neither Ray nor a model
library. Without ``service.tls`` the traffic is plain text, and stays on this machine.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import (  # type: ignore[import-untyped]
    reflection,
    reflection_pb2_grpc,
)

from cluster import bearer_token, service_process
from cluster.batching import Batcher
from cluster.load_shedding import Pace
from cluster.protos import verifier_pb2, verifier_pb2_grpc
from cluster.service_metrics import ServiceMetrics
from cluster.verifier_credentials import server_credentials
from cluster.verifier_guard import Guard
from cluster.verifier_methods import Served, VerifierMethods
from rewards.building import build_verifier
from rewards.deadline import start_with_deadline
from safeladder import addresses
from safeladder.config import Config, PrincipleConfig, ServiceConfig, TlsConfig
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.ports import Verifier

log = logging.getLogger(__name__)

SERVICE: str = verifier_pb2.DESCRIPTOR.services_by_name["VerifierService"].full_name
STOP_GRACE_S = 3.0
STOP_DEADLINE_S = 5.0
"""From a signal to the end of the process, whatever a verifier does."""
WATCH_EVERY_S = 1.0
MAX_CONNECTIONS = 4096
FILES_BESIDE_CONNECTIONS = 128
"""File descriptors for everything that is no connection."""
_WAITING_CALLS = 1024
"""Calls whose body is still on its way, beyond those that run."""
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else two servers share a port without a word
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # A connection that never says what it wants, or says nothing for long, is closed. Clients that
    # come back later connect anew by themselves.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # A peer that is gone without a word is noticed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 256),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
)


class VerifierServer:
    """A gRPC server over verifiers, principle → verifier. ``start`` once, ``stop`` once.

    ``where`` is the config key that the settings came from, for messages.
    """

    def __init__(
        self,
        verifiers: Mapping[str, Verifier],
        *,
        token: str | None = None,
        tls: TlsConfig | None = None,
        insecure: bool = False,
        max_concurrent: int = 64,
        batching: Mapping[str, tuple[int, float]] | None = None,
        where: str = "service",
    ) -> None:
        self._verifiers = dict(verifiers)
        self._token = token
        self._tls = tls
        self._insecure = insecure
        self._max_concurrent = max_concurrent
        self._where = where
        self.metrics = ServiceMetrics(verifiers)
        self._methods = VerifierMethods(
            {
                name: _serve_with(name, verifier, *(batching or {}).get(name, (1, 0.0)))
                for name, verifier in verifiers.items()
            },
            max_concurrent,
            self.metrics,
        )
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, bind: str) -> int:
        """Listen on ``host:port`` (port 0: a free one), get the verifiers ready, serve.

        Returns the port. Raises ``ConfigError`` for an address or a certificate that may not be
        used, ``EnvironmentUnfitError`` for an address that is taken, and what a verifier's
        ``start`` raises.
        """
        addresses.check_bind(bind)
        if self._tls is None and not self._insecure:
            way_out = f", name certificates in {self._where}.tls, or write {self._where}.insecure: "
            addresses.check_loopback(bind, f"{way_out}true on a network that you trust")
        addresses.check_free(bind)
        server = self._build()
        try:
            port = self._listen(server, bind)
        except RuntimeError as error:
            raise EnvironmentUnfitError(f"cannot listen on {bind}: {error}") from error
        self._server = server
        try:
            await asyncio.gather(
                *(
                    start_with_deadline(verifier, principle=name)
                    for name, verifier in self._verifiers.items()
                )
            )
        except BaseException:
            await self.stop(0)
            raise
        await server.start()
        await self._say_health(is_well=True)
        self._watching = asyncio.create_task(self._watch())
        return port

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls, let running ones end within ``grace_s``, close the verifiers."""
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace_s)
        await self._methods.close()

    async def _watch(self) -> None:
        """Bad health while a verifier hangs for good: only another process helps then."""
        was_well = True
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            dead = [n for n, one in self._verifiers.items() if getattr(one, "is_dead", False)]
            if was_well and dead:
                log.error("%s hang in all their threads; restart this service", ", ".join(dead))
            if was_well is bool(dead):
                was_well = not dead
                await self._say_health(is_well=was_well)

    async def _say_health(self, *, is_well: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in (SERVICE, health.OVERALL_HEALTH):
            await self._health.set(name, status.SERVING if is_well else status.NOT_SERVING)

    def _listen(self, server: grpc.aio.Server, bind: str) -> int:
        if self._tls is None:
            return server.add_insecure_port(bind)
        return server.add_secure_port(bind, server_credentials(self._tls, f"{self._where}.tls"))

    def _build(self) -> grpc.aio.Server:
        files = service_process.allow_open_files(MAX_CONNECTIONS + FILES_BESIDE_CONNECTIONS)
        names = self._tls.allowed_names if self._tls and self._tls.ca_file else None
        server = grpc.aio.server(
            # Above our own limit, which answers with a reason; this one guards against floods.
            maximum_concurrent_rpcs=self._max_concurrent + _WAITING_CALLS,
            options=[
                *_OPTIONS,
                ("grpc.max_allowed_incoming_connections", files - FILES_BESIDE_CONNECTIONS),
            ],
        )
        guard = Guard(self._token, names, self.metrics)
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self._methods, guard)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, guard)
        shown = reflection.aio.ReflectionServicer(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        )
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(shown, guard)
        server.add_generic_rpc_handlers((guard,))
        return server


def _serve_with(name: str, verifier: Verifier, max_batch: int, max_wait_s: float) -> Served:
    batcher = Batcher(name, verifier, max_batch=max_batch, max_wait_s=max_wait_s)
    return Served(verifier=verifier, batcher=batcher, pace=Pace())


def run_service(
    config: Config,
    principles: Sequence[str] | None,
    bind: str,
    *,
    ready_file: Path | None = None,
    token_file: Path | None = None,
    metrics_bind: str | None = None,
    die_with_parent: bool = False,
) -> None:
    """Serve the verifiers of a config until SIGTERM or SIGINT; blocks.

    ``principles`` None serves all that name a verifier. Once calls are answered, stdout gets a line
    with the address and ``ready_file`` gets ``host:port``, until the end. ``token_file`` defaults
    to the principles' own ``service.token_file``; their ``tls`` and ``insecure`` count too.
    ``metrics_bind`` answers Prometheus on a loopback port.
    ``die_with_parent`` asks the kernel to kill this process when the thread that started it ends.
    Raises ``ConfigError``, ``EnvironmentUnfitError``, ``VerifierUnavailableError``.
    """
    if die_with_parent:
        service_process.die_with_parent()
    addresses.check_bind(bind)
    if ready_file is not None:
        service_process.check_ready_file(ready_file)
    chosen = _choose(config, principles)
    settings = {name: config.principles[name] for name in chosen}
    service = _shared_settings(settings, token_file)
    server = VerifierServer(
        {name: build_verifier(name, principle) for name, principle in settings.items()},
        token=None if service.token_file is None else bearer_token.read_token(service.token_file),
        tls=service.tls,
        insecure=service.insecure,
        batching={
            name: (principle.service.max_batch, principle.service.max_wait_ms / 1000)
            for name, principle in settings.items()
            if principle.service is not None
        },
        where=f"principles.{next(iter(chosen), '<name>')}.service",
    )
    stop_metrics = server.metrics.serve(metrics_bind) if metrics_bind else _nothing
    try:
        asyncio.run(_serve(server, bind, chosen, ready_file))
    finally:
        stop_metrics()


def _nothing() -> None:
    return None


async def _serve(
    server: VerifierServer, bind: str, principles: Sequence[str], ready_file: Path | None
) -> None:
    port = await server.start(bind)
    asked_to_stop = service_process.stop_signal(STOP_DEADLINE_S)
    address = f"{bind.rpartition(':')[0]}:{port}"
    try:
        if ready_file is not None:
            service_process.announce(address, ready_file)
        sys.stdout.write(f"serving {', '.join(principles)} on {address}\n")
        sys.stdout.flush()
        await asked_to_stop.wait()
    finally:
        if ready_file is not None:
            service_process.withdraw(address, ready_file)
        await server.stop()


def _choose(config: Config, principles: Sequence[str] | None) -> list[str]:
    if principles is None:
        return [name for name, principle in config.principles.items() if principle.verifier]
    for name in principles:
        if name not in config.principles:
            known = ", ".join(sorted(config.principles))
            raise ConfigError(f"--principle {name}: not in `principles` of the config ({known})")
    return list(principles)


def _shared_settings(
    settings: Mapping[str, PrincipleConfig], token_file: Path | None
) -> ServiceConfig:
    """What all principles of one server agree on. Raises ``ConfigError`` if they do not."""
    services = [principle.service or ServiceConfig(spawn=True) for principle in settings.values()]
    if token_file is not None:
        services = [one.model_copy(update={"token_file": token_file}) for one in services]
    for key in ("token_file", "tls", "insecure"):
        if any(getattr(one, key) != getattr(services[0], key) for one in services):
            raise ConfigError(
                f"these principles differ in service.{key}; "
                "serve them one by one with --principle, or make them agree"
            )
    return services[0] if services else ServiceConfig(spawn=True)
