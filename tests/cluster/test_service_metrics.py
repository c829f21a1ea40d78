"""What Prometheus sees: every call and verdict once, and no label that a caller chose."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest

from cluster.protos import verifier_pb2_grpc
from cluster.service_metrics import ServiceMetrics
from cluster.verifier_service import VerifierServer
from safeladder.errors import ConfigError, EnvironmentUnfitError
from tests.cluster.test_verifier_service import body_of, envelope
from tests.cluster.verifier_fakes import FailingVerifier, LengthVerifier


def seen(metrics: ServiceMetrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    values = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.removeprefix("safeladder_verifier_"): float(value) for name, _, value in values}


def test_calls_and_verdicts_are_counted_by_closed_labels() -> None:
    async def run() -> dict[str, float]:
        verifiers = {"safety": LengthVerifier(), "bad": FailingVerifier("bad")}
        server = VerifierServer(verifiers)
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = verifier_pb2_grpc.VerifierServiceStub(channel)

            async def ask(payload: bytes = body_of("a", "b"), **fields: Any) -> None:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Score(envelope(payload, **fields), timeout=10)

            await ask()
            await ask()  # answered from what is kept: a call, but no new verdicts
            await ask(principle="bad")
            await ask(schema_version=7)
            for name in ("x1", "x2", 'evil"} 1\n'):
                await ask(principle=name)
            await ask(b"\xc1", idempotency_key="other")
        await server.stop(0)
        return seen(server.metrics)

    found = asyncio.run(run())
    calls = {name: value for name, value in found.items() if name.startswith("calls_total")}
    assert calls == {
        'calls_total{principle="safety",reason="OK"}': 2,
        'calls_total{principle="bad",reason="OK"}': 1,
        'calls_total{principle="safety",reason="UNKNOWN_SCHEMA_VERSION"}': 1,
        'calls_total{principle="other",reason="UNKNOWN_PRINCIPLE"}': 3,
        'calls_total{principle="safety",reason="MALFORMED_BODY"}': 1,
    }
    assert found['verdicts_total{cause="",principle="safety",status="ok"}'] == 2
    assert found['verdicts_total{cause="error",principle="bad",status="invalid"}'] == 2
    assert found['call_seconds_bucket{le="+Inf",principle="safety"}'] == 2
    assert found['call_seconds_count{principle="safety"}'] == 2
    assert found["running_calls"] == 0
    assert found["waiting_samples"] == 0
    assert found["kept_bytes"] > 0


def test_a_histogram_counts_a_time_in_every_bucket_above_it() -> None:
    metrics = ServiceMetrics(["p"])
    for seconds in (0.0005, 0.001, 0.3, 1000.0):
        metrics.count_answer("p", seconds)
    found = seen(metrics)
    counts = [found[f'call_seconds_bucket{{le="{le}",principle="p"}}'] for le in ("0.001", "0.5")]
    assert [*counts, found['call_seconds_bucket{le="+Inf",principle="p"}']] == [2, 3, 4]
    assert found['call_seconds_sum{principle="p"}'] == pytest.approx(1000.3015)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def test_they_are_served_on_a_loopback_port_until_the_end() -> None:
    metrics = ServiceMetrics(["p"])
    metrics.count_call("p")
    address = f"127.0.0.1:{free_port()}"
    stop = metrics.serve(address)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert b'calls_total{principle="p",reason="OK"} 1.0' in answer.read()
    with pytest.raises(EnvironmentUnfitError, match=r"in use.*--metrics-bind"):
        metrics.serve(address)
    stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{address}/metrics", timeout=5)


@pytest.mark.parametrize("bind", ["0.0.0.0:9000", "192.0.2.1:9000", "example.org:9000"])
def test_they_are_not_shown_to_other_machines(bind: str) -> None:
    with pytest.raises(ConfigError, match="bind to 127"):
        ServiceMetrics([]).serve(bind)
    with pytest.raises(ConfigError, match="--metrics-bind wants"):
        ServiceMetrics([]).serve("9000")
