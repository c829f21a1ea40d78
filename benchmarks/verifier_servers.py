"""The servers of ``benchmarks/verifier_service.py``, in one process: the service and a bare echo,
each in plain text and over mTLS. Prints their ports as one line of JSON, serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import trustme

from cluster import service_process
from cluster.verifier_credentials import server_credentials
from cluster.verifier_service import SERVICE as SERVICE_NAME
from cluster.verifier_service import VerifierServer
from rewards.format import ThinkFormat
from safeladder.config import TlsConfig

ECHO = "/benchmark.Echo/Echo"
SERVICE = f"/{SERVICE_NAME}/Score"
PRINCIPLE = "format"
SERVER_NAME, CLIENT_NAME = "verifier.test", "run.test"


def make_certificates(folder: Path) -> None:
    """An authority, and a certificate for each side."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in (SERVER_NAME, CLIENT_NAME):
        issued = authority.issue_cert(name)
        issued.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")


def tls_of(folder: Path, name: str) -> TlsConfig:
    """The settings of one side."""
    pair = folder / f"{name}.pem"
    return TlsConfig(
        ca_file=folder / "ca.pem",
        cert_file=pair,
        key_file=pair,
        server_name=SERVER_NAME,
        allowed_names=(CLIENT_NAME,),
    )


class _Echo(grpc.GenericRpcHandler):
    """The least that a gRPC server can do."""

    def __init__(self) -> None:
        self._handler: Any = grpc.unary_unary_rpc_method_handler(_echo)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handler if details.method == ECHO else None


async def _echo(request: bytes, context: Any) -> bytes:
    del context
    return request


async def serve(folder: Path) -> None:
    """All four, until SIGTERM."""
    tls = tls_of(folder, SERVER_NAME)
    ports: dict[str, int] = {}
    services, echoes = [], []
    for way, shown in (("plain", None), ("mtls", tls)):
        service = VerifierServer({PRINCIPLE: ThinkFormat(principle=PRINCIPLE)}, tls=shown)
        ports[f"service {way}"] = await service.start("127.0.0.1:0")
        services.append(service)
        echo = grpc.aio.server()
        echo.add_generic_rpc_handlers((_Echo(),))
        if shown is None:
            ports[f"echo {way}"] = echo.add_insecure_port("127.0.0.1:0")
        else:
            credentials = server_credentials(shown, "tls")
            ports[f"echo {way}"] = echo.add_secure_port("127.0.0.1:0", credentials)
        await echo.start()
        echoes.append(echo)
    asked_to_stop = service_process.stop_signal(10.0)
    print(json.dumps(ports), flush=True)
    await asked_to_stop.wait()
    for service in services:
        await service.stop(0)
    for echo in echoes:
        await echo.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
