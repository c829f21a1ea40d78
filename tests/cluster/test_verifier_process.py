"""The service as a process of its own: light, announced when ready, ended by a word or with its
parent."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.service_process import announce, withdraw
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import run_service
from safeladder.config import Config, TlsConfig
from safeladder.errors import ConfigError, EnvironmentUnfitError
from tests.abuse.certificates import Authority
from tests.cluster.verifier_fakes import make_request

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
CONFIG = """
from pathlib import Path
import sys
from safeladder.config import Config
from cluster.verifier_service import run_service
config = Config.model_validate({
    "run": {"name": "r", "steps": 1}, "model": {"path": "m"}, "data": {"train": []},
    "principles": {"safety": {"verifier": "tests.cluster.verifier_fakes:LengthVerifier"}},
    "routes": {"safety": {"safety": 1.0}},
})
"""
SERVE = f"""{CONFIG}
run_service(config, ["safety"], "127.0.0.1:0", ready_file=Path(sys.argv[1]), die_with_parent=True)
print(sorted({{"ray", "torch", "vllm", "deepspeed", "transformers"}} & set(sys.modules)))
"""
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {SERVE!r}, sys.argv[1]]).pid, flush=True)
time.sleep(60)
"""


def wait_for(is_done: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start(program: str, ready_file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, str(ready_file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: ready_file.exists() or process.poll() is not None)
    return process


def test_it_serves_without_a_heavy_library_and_ends_at_sigterm(tmp_path: Path) -> None:
    process = start(SERVE, tmp_path / "address")
    try:
        address = (tmp_path / "address").read_text()

        async def ask() -> list[float | None]:
            client = GrpcVerifier("safety", address, 20)
            await client.start()
            verdicts = await client.score([make_request(0, "x" * 50)])
            await client.close()
            return [verdict.score for verdict in verdicts]

        assert asyncio.run(ask()) == [0.5]
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        told, heavy = printed.splitlines()
        assert told == f"serving safety on {address}"
        assert heavy == "[]", "heavy libraries in the service"
        assert list(tmp_path.iterdir()) == [], "its address is gone with it"
    finally:
        process.kill()
        process.wait(10)


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = start(PARENT, tmp_path / "address")
    assert parent.stdout is not None
    service = psutil.Process(int(parent.stdout.readline()))
    try:
        assert not is_gone(service)
        parent.kill()
        parent.communicate(timeout=10)
        wait_for(lambda: is_gone(service), 10)
    finally:
        parent.kill()
        if not is_gone(service):
            service.kill()


def test_a_config_with_certificates_is_served_over_tls_with_metrics_beside(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("localhost")
    tls = {"ca_file": str(authority.ca_file), "allowed_names": ["localhost"]}
    tls |= {name: str(file) for name, file in pair.items()}
    service = {"spawn": True, "tls": tls}
    judge = {"verifier": "rewards.format:ThinkFormat", "service": service}
    config = {
        "run": {"name": "r", "steps": 1},
        "model": {"path": "m"},
        "data": {"train": []},
        "principles": {"safety": judge},
        "routes": {"safety": {"safety": 1.0}},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "cluster", "serve-verifier", str(tmp_path / "config.yaml")]
    command += ["--ready-file", str(tmp_path / "address"), "--metrics-bind", metrics]
    process = subprocess.Popen([*command, "--die-with-parent"], cwd=ROOT)
    try:
        wait_for(lambda: (tmp_path / "address").exists() or process.poll() is not None)
        address = (tmp_path / "address").read_text()
        settings = TlsConfig.model_validate({**tls, "server_name": "localhost"})

        async def ask() -> list[float | None]:
            client = GrpcVerifier("safety", address, 20, tls=settings)
            await client.start()
            verdicts = await client.score([make_request(0, "<think>a</think> b")])
            await client.close()
            return [verdict.score for verdict in verdicts]

        assert asyncio.run(ask()) == [1.0]
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            assert b'verdicts_total{cause="",principle="safety",status="ok"} 1.0' in answer.read()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


def make_config(**principles: object) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "r", "steps": 1},
            "model": {"path": "m"},
            "data": {"train": []},
            "principles": principles,
            "routes": {},
        }
    )


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    fake = "tests.cluster.verifier_fakes:LengthVerifier"
    config = make_config(
        safety={"verifier": fake, "service": {"spawn": True, "token_file": str(tmp_path / "t")}},
        format={"verifier": fake},
        remote={"service": {"address": "127.0.0.1:1"}},
    )
    with pytest.raises(ConfigError, match=r"charm.*format, remote, safety"):
        run_service(config, ["charm"], "127.0.0.1:0")
    with pytest.raises(ConfigError, match=r"principles\.remote\.verifier"):
        run_service(config, ["remote"], "127.0.0.1:0")
    with pytest.raises(ConfigError, match="token_file"):
        run_service(config, None, "127.0.0.1:0")
    with pytest.raises(ConfigError, match=r"token file .* cannot be read"):
        run_service(config, ["safety"], "127.0.0.1:0")


@pytest.mark.parametrize(
    ("bind", "kind"),
    [
        ("a" * 300 + ":0", ConfigError),
        ("127.0.0.1:٣", ConfigError),
        ("127.0.0.1:" + "9" * 5000, ConfigError),
        (f"{'a' * 70}.example:0", EnvironmentUnfitError),
    ],
)
def test_an_odd_address_is_one_sentence(bind: str, kind: type[Exception]) -> None:
    fake = {"verifier": "tests.cluster.verifier_fakes:LengthVerifier"}
    service = {"spawn": True, "insecure": True}
    with pytest.raises(kind, match="--bind"):
        run_service(make_config(format={**fake, "service": service}), None, bind)


@pytest.mark.parametrize("place", ["nowhere/address", "folder", "x" * 300, "nul\0"])
def test_a_ready_file_that_cannot_be_written_is_refused_before_the_start(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    config = make_config(format={"verifier": "tests.cluster.verifier_fakes:LengthVerifier"})
    with pytest.raises(ConfigError, match="--ready-file"):
        run_service(config, None, "127.0.0.1:0", ready_file=tmp_path / place)
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


def test_a_ready_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    with pytest.raises(ConfigError, match="--ready-file"):
        announce("127.0.0.1:1", tmp_path / "ready")
    assert [file.name for file in tmp_path.iterdir()] == ["ready"]


def test_a_ready_file_of_another_service_is_left_alone(tmp_path: Path) -> None:
    announce("127.0.0.1:1", tmp_path / "ready")
    withdraw("127.0.0.1:2", tmp_path / "ready")
    assert (tmp_path / "ready").read_text() == "127.0.0.1:1"


def test_overlays_and_overrides_count_as_for_the_other_verbs(tmp_path: Path) -> None:
    config = make_config(format={"verifier": "rewards.format:StopWithinLimit"})
    base = tmp_path / "base.yaml"
    base.write_text(config.model_dump_json(exclude_defaults=True))
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("principles: {format: {options: {max_tokens: 3}}}")
    command = [sys.executable, "-m", "cluster", "serve-verifier", str(base), str(overlay)]
    command += ["principles.format.options.max_tokens=5"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told.startswith("serving format on 127.0.0.1:")

        async def ask() -> list[str | None]:
            client = GrpcVerifier("format", told.split()[-1], 20)
            await client.start()
            verdicts = await client.score([make_request(n, num_tokens=n) for n in (5, 6)])
            await client.close()
            return [verdict.label for verdict in verdicts]

        assert asyncio.run(ask()) == ["stopped", "too long"]
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_a_taken_port_ends_the_process_with_the_right_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = make_config(format={"verifier": "tests.cluster.verifier_fakes:LengthVerifier"})
        with pytest.raises(EnvironmentUnfitError, match=str(port)) as caught:
            run_service(config, None, f"127.0.0.1:{port}")
        assert caught.value.exit_code == 3
