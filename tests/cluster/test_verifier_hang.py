"""A service whose verifier really hangs: calls end in time, health tells, SIGTERM ends it, and a
run replaces it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster import verifier_probe, verifier_service
from cluster.services import VerifierServices
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from rewards import threads
from safeladder.config import Config
from safeladder.records import InvalidCause, ScoreRequest, Verdict
from tests.cluster.test_verifier_process import ROOT, wait_for
from tests.cluster.verifier_fakes import LengthVerifier, make_request
from tests.runs.faulty import Stuck

pytestmark = pytest.mark.process

HANG = make_request(0, "hang")
FINE = make_request(1, "fine")


class Blocking(LengthVerifier):
    """Holds up the event loop itself: no thread saves a verifier that is written so."""

    def __init__(self, *, principle: str) -> None:
        super().__init__(principle)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        time.sleep(3600)  # noqa: ASYNC251 - the fault that is meant
        return []


async def ask(address: str, timeout_s: float, *requests: ScoreRequest) -> list[Verdict]:
    client = GrpcVerifier("safety", address, timeout_s)
    await client.start()
    try:
        return await client.score(requests)
    finally:
        await client.close()


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status)


def test_calls_end_in_time_and_health_turns_bad_when_no_thread_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "HOPELESS_S", 0.0)
    monkeypatch.setattr(verifier_service, "WATCH_EVERY_S", 0.05)

    async def run() -> None:
        server = VerifierServer(
            {"safety": Stuck(principle="safety", word="hang"), "other": LengthVerifier("other")}
        )
        address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        try:
            assert await health(address) == health_pb2.HealthCheckResponse.SERVING
            hung = [
                asyncio.ensure_future(ask(address, 2.0, make_request(i, "hang")))
                for i in range(threads.NUM_THREADS - 1)
            ]
            assert [v.score for v in await ask(address, 10.0, FINE)] == [1.0]
            for (verdict,) in await asyncio.gather(*hung):
                assert verdict.cause is InvalidCause.TIMEOUT
            assert [v.score for v in await ask(address, 10.0, FINE)] == [1.0]
            await ask(address, 1.0, make_request(9, "hang"))
            async with asyncio.timeout(20):
                for _ in range(400):
                    if await health(address) == health_pb2.HealthCheckResponse.NOT_SERVING:
                        break
                    await asyncio.sleep(0.05)
            (verdict,) = await ask(address, 10.0, make_request(10, "fine"))
            assert verdict.cause is InvalidCause.UNAVAILABLE
        finally:
            await server.stop(0)

    asyncio.run(run())


def config_file(folder: Path, verifier: str, **options: str) -> Path:
    judge = {"verifier": verifier, "options": options, "service": {"spawn": True}}
    config = {
        "run": {"name": "r", "steps": 1},
        "model": {"path": "m"},
        "data": {"train": ["d.jsonl"]},
        "principles": {"safety": judge},
        "routes": {"safety": {"safety": 1.0}},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))
    return file


@pytest.mark.parametrize("kind", ["Stuck", "Blocking"])
def test_a_service_that_hangs_ends_at_sigterm(tmp_path: Path, kind: str) -> None:
    if kind == "Stuck":
        file = config_file(tmp_path, "tests.runs.faulty:Stuck", word="hang")
    else:
        file = config_file(tmp_path, "tests.cluster.test_verifier_hang:Blocking")
    ready = tmp_path / "address"
    command = [sys.executable, "-m", "cluster", "serve-verifier", str(file)]
    process = subprocess.Popen([*command, "--ready-file", str(ready)], cwd=ROOT)
    try:
        wait_for(lambda: ready.exists() or process.poll() is not None)
        (verdict,) = asyncio.run(ask(ready.read_text(), 1.0, HANG))
        assert verdict.cause is InvalidCause.TIMEOUT
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == (0 if kind == "Stuck" else 1)
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifierServices]:
    monkeypatch.setattr(verifier_probe, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(verifier_probe, "PROBE_DEADLINE_S", 1.0)
    monkeypatch.setattr(verifier_probe, "MAX_SILENT_PROBES", 2)
    monkeypatch.chdir(ROOT)
    file = config_file(tmp_path, "tests.runs.faulty:Stuck", word="hang")
    config = Config.model_validate(json.loads(file.read_text()))
    running = VerifierServices(config, file, tmp_path / "services")
    try:
        yield running
    finally:
        running.close()


def test_a_run_replaces_a_service_that_does_not_answer(
    spawned: VerifierServices, tmp_path: Path
) -> None:
    service = spawned.start().principles["safety"].service
    assert service is not None
    assert service.address is not None
    log = tmp_path / "services" / "safety.log"
    ready = tmp_path / "services" / "safety.address"
    (process,) = spawned._services
    first = process.pid
    assert first is not None
    for _ in range(20):
        spawned.supervise()
        time.sleep(0.05)
    assert process.pid == first, "a service that is well is left alone"
    os.kill(first, signal.SIGSTOP)

    def is_replaced() -> bool:
        started = time.monotonic()
        spawned.supervise()
        assert time.monotonic() - started < 1.0, "the driver must not wait"
        return process.pid not in (None, first)

    wait_for(is_replaced)
    wait_for(ready.exists)
    assert ready.read_text() == service.address, "clients find it where it was"
    (verdict,) = asyncio.run(ask(service.address, 20.0, FINE))
    assert verdict.score == 1.0, log.read_text()
