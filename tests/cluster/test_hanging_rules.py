"""Commands go on where a rule really hangs, and a service that calls itself unfit is not well."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster import verifier_probe
from cluster.checks import score_samples
from cluster.offline_scoring import score_file
from cluster.verifier_probe import HealthProbe
from safeladder.config import Config, ServiceConfig
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, Message, Prompt
from tests.cluster.test_verifier_process import wait_for

pytestmark = pytest.mark.process

CONFIG = Config.model_validate(
    {
        "run": {"name": "r", "steps": 1},
        "model": {"path": "m"},
        "data": {"train": []},
        "principles": {
            "form": {"verifier": "rewards.format:StopWithinLimit"},
            "stuck": {
                "verifier": "tests.runs.faulty:Stuck",
                "options": {"word": "hang"},
                "timeout_s": 0.2,
            },
        },
        "routes": {"open": {"form": 1.0, "stuck": 1.0}},
    }
)


def test_score_gives_the_other_principle_its_verdicts(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    row = {"prompt": "?", "route": "open"}
    file.write_text("\n".join(json.dumps(row | {"response": text}) for text in ("hang", "fine")))
    verdicts = asyncio.run(score_file(CONFIG, file)).verdicts
    assert [v.score for v in verdicts if v.principle == "form"] == [1.0, 1.0]
    assert {v.cause for v in verdicts if v.principle == "stuck"} == {InvalidCause.TIMEOUT}


def test_check_says_which_principle_gives_no_verdict() -> None:
    prompt = Prompt(id="a", messages=(Message("user", "?"),), route="open", reference="hang")
    with pytest.raises(VerifierUnavailableError, match=r"^principles\.stuck: .*INVALID\(timeout"):
        asyncio.run(score_samples(CONFIG, [prompt]))


@pytest.fixture
def servicer() -> Iterator[tuple[str, health.HealthServicer]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(0).wait()


def test_a_probe_tells_unfit_silent_and_restarted_services_apart(
    servicer: tuple[str, health.HealthServicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier_probe, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(verifier_probe, "PROBE_DEADLINE_S", 0.3)
    address, said = servicer
    probe = HealthProbe(address, ServiceConfig(spawn=True), "principles.p.service")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert probe.is_well()
        time.sleep(0.02)
    said.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    wait_for(lambda: not probe.is_well(), 10)
    said.set("", health_pb2.HealthCheckResponse.SERVING)
    probe.restart()
    assert probe.is_well()
    probe.close()


def test_a_service_that_has_not_answered_yet_has_time_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verifier_probe, "PROBE_EVERY_S", 0.01)
    monkeypatch.setattr(verifier_probe, "PROBE_DEADLINE_S", 0.02)
    monkeypatch.setattr(verifier_probe, "START_PATIENCE_S", 0.6)
    probe = HealthProbe("127.0.0.1:1", ServiceConfig(spawn=True), "principles.p.service")
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        assert probe.is_well()
        time.sleep(0.02)
    wait_for(lambda: not probe.is_well(), 10)
    probe.close()
