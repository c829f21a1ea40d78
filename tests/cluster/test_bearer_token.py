"""The token file: what is in it, and who can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.bearer_token import read_token


def test_a_token_file_that_others_can_read_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("secret\n")
    path.chmod(0o600)
    assert read_token(path) == "secret"
    assert caplog.messages == []
    path.chmod(0o644)
    assert [read_token(path) for _ in range(3)] == ["secret"] * 3
    (said,) = caplog.messages
    assert said.startswith(f"token file {path} can be read by others (mode 0644); ")
    assert said.endswith(f"`chmod 600 {path}`")
    assert "secret" not in said.replace(str(path), "")
