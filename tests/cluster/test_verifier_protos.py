"""The committed stubs are what the .proto file says, and importing them needs no path tricks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_committed_stubs_equal_a_fresh_generation(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, "cluster/protos/verifier.proto"], cwd=ROOT, check=True, timeout=60)
    fresh = sorted((tmp_path / "cluster/protos").iterdir())
    assert [file.name for file in fresh] == [
        "verifier_pb2.py",
        "verifier_pb2.pyi",
        "verifier_pb2_grpc.py",
    ]
    for file in fresh:
        assert (ROOT / "cluster/protos" / file.name).read_text() == file.read_text(), "make proto"
