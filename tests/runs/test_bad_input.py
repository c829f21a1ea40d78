"""What a user gets wrong, through the real command line: one sentence that names the thing and the
way out, the exit code of its kind, and no process left behind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.host_checks import CPU_FLAGS, processor_flags
from cluster.run_directory import RunDirectory, Status
from learners.checkpoints import CheckpointManifest, commit_checkpoint, write_durably
from safeladder.config_loading import load_config
from tests.abuse.certificates import SERVER, Authority

from .leftovers import command

pytestmark = pytest.mark.process

Write = Callable[..., Path]
DEADLINE_S = 120.0
"""For a busy machine: on an idle one each command takes about a second."""


def refused(code: int, *words: str | Path, within: tuple[str, ...] = ()) -> str:
    """Run the command (``within``: a program around it); its one sentence."""
    with command(*map(str, words), within=within) as run:
        got, out, err = run.finish(DEADLINE_S)
        assert (got, out) == (code, ""), out + err
        assert "Traceback" not in err
        assert err.startswith("safeladder: ")
        assert err.count("\n") == 1, err
        assert run.left() == []
    return err.removeprefix("safeladder: ").rstrip()


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
    return number


def test_a_missing_model_is_named(tiny_config: Write) -> None:
    said = refused(3, "train", tiny_config(), "model.path=models/nowhere")
    assert said.startswith("model models/nowhere: there is no such folder; set model.path")


def test_a_dtype_that_the_machine_lacks_is_refused(tiny_config: Write) -> None:
    missing = [dtype for dtype, units in CPU_FLAGS.items() if not units & processor_flags()]
    if not missing:
        pytest.skip("this processor has units for every dtype")
    said = refused(3, "train", tiny_config(), f"model.dtype={missing[0]}")
    assert f"no {missing[0]} units; set model.dtype to float32" in said


def test_a_row_without_prompt_is_named_by_file_and_line(tiny_config: Write, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "route": "normal"}\n{"question": "b", "route": "normal"}\n')
    said = refused(2, "train", tiny_config(), f"data.train=[{rows}]")
    assert said == f"{rows}:2: column prompt is missing; give a string or a list of messages"


def test_a_verifier_that_does_not_import_is_named_with_the_nearest(tiny_config: Write) -> None:
    swap = "principles.stop.verifier=rewards.fromat:StopWithinLimit"
    said = refused(2, "train", tiny_config(), swap)
    assert said == (
        "principles.stop.verifier: no module 'rewards.fromat'; did you mean 'rewards.format'?"
    )


def test_a_misspelled_principle_in_an_overlay_is_no_new_principle(
    tiny_config: Write, tmp_path: Path
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("principles: {sotp: {verifier: 'rewards.exact:ExactAnswer'}}")
    said = refused(2, "train", tiny_config(), overlay)
    assert said == "principles.sotp is in no route, so it does nothing; did you mean stop?"


def test_an_address_where_no_service_answers_is_named(tiny_config: Write, free_port: int) -> None:
    swap = f"principles.stop={{service: {{address: '127.0.0.1:{free_port}'}}}}"
    said = refused(4, "train", tiny_config(), swap)
    assert f"127.0.0.1:{free_port}" in said
    assert "safeladder serve-verifier" in said


def test_an_authority_that_did_not_sign_the_services_certificate_is_named(
    tiny_config: Write, tmp_path: Path
) -> None:
    ours, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    shown = ours.server()
    tls = f"{{cert_file: {shown.cert_file}, key_file: {shown.key_file}}}"
    service = f"principles.stop.service={{spawn: true, tls: {tls}}}"
    words = (str(tiny_config()), "--principle", "stop", "--bind", "127.0.0.1:0", service)
    ready = tmp_path / "address"
    with command("serve-verifier", *words, "--ready-file", str(ready)):
        deadline_s = time.monotonic() + DEADLINE_S
        while not ready.exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        address = ready.read_text()
        asked = f"{{ca_file: {stranger.ca_file}, server_name: {SERVER}}}"
        swap = f"principles.stop={{service: {{address: '{address}', tls: {asked}}}}}"
        said = refused(2, "train", tiny_config(), swap)
    assert said.startswith(
        f"principles.stop.service.tls.ca_file: something listens at {address}, but the connection"
    )


def test_a_reward_function_that_its_file_lacks_is_named(tiny_config: Write, tmp_path: Path) -> None:
    file = tmp_path / "rf.py"
    file.write_text("def helpful(data_source, solution_str, ground_truth, **_): return 1.0\n")
    verifier = (
        f"verifier: 'rewards.adapters.verl:VerlReward', options: {{function: '{file}:hlpful'}}"
    )
    said = refused(2, "train", tiny_config(), f"principles.stop={{{verifier}}}")
    told = f"{file} defines no 'hlpful'; did you mean 'helpful'?"
    assert said == f"principles.stop.options.function: {told}"


def test_an_address_where_no_ray_answers_is_named(tiny_config: Write, free_port: int) -> None:
    said = refused(3, "train", tiny_config(), f"placement.address=127.0.0.1:{free_port}")
    assert said.startswith(f"placement.address: no Ray cluster answers at 127.0.0.1:{free_port}")


def test_a_port_in_use_is_named(tiny_config: Write, port: int) -> None:
    said = refused(3, "serve-verifier", tiny_config(), "--bind", f"127.0.0.1:{port}")
    assert f"port {port} is in use; stop its owner or choose another with --bind" in said


def test_a_full_disk_is_named(tiny_config: Write, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=64k small {disk} && exec "$@"'
    within = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk in a namespace of their own")
    said = refused(3, "train", tiny_config(), f"run.root={disk}", within=within)
    assert f"{disk}/tiny: 0.0 GiB are free on this disk" in said
    assert "free some space, set run.root to another disk" in said


def test_a_run_directory_that_exists_is_left_alone(tiny_config: Write) -> None:
    config = tiny_config()
    run = RunDirectory.create(load_config([config]))
    run.write_status(finished := Status(state="finished", pid=1, step=2, exit_code=0))
    said = refused(2, "train", config)
    assert said.startswith(f"{run.path} already exists: choose another run.name, or")
    assert run.status() == finished


def test_a_checkpoint_that_differs_from_its_checksum_is_not_resumed(tiny_config: Write) -> None:
    run = RunDirectory.create(load_config([tiny_config()]))
    run.write_status(Status(state="running", pid=2**22 + 1, step=1, version=1))
    manifest = CheckpointManifest(
        step=1, version=1, fence=1, num_updates=1, dtype="float32", config_sha256=""
    )

    def weights(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}

    checkpoint = commit_checkpoint(run.checkpoints, manifest, weights, keep=1)
    (checkpoint / "model.safetensors").write_bytes(b"Weights")
    said = refused(6, "resume", run.path)
    assert said.startswith(f"{run.path} has no checkpoint to continue from (step-1: ")
    assert "model.safetensors differs from its SHA-256" in said
    status = run.status()
    assert status is not None
    assert (status.state, status.exit_code, status.step) == ("failed", 6, 1)
    shutil.rmtree(run.path)
