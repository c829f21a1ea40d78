import os
from pathlib import Path

import pytest

from safeladder.paths import PathError, is_file, kind_of, read_bytes


def test_what_is_there_is_told_apart(tmp_path: Path) -> None:
    file, pipe, link = tmp_path / "file", tmp_path / "pipe", tmp_path / "link"
    file.write_bytes(b"text")
    os.mkfifo(pipe)
    link.symlink_to(file)
    assert [kind_of(p) for p in (file, link, tmp_path, pipe)] == ["file", "file", "folder", "other"]
    assert kind_of(tmp_path / "nothing") is None
    assert kind_of(file / "below a file") is None
    assert read_bytes(link) == b"text"


@pytest.mark.parametrize(
    ("name", "why"),
    [("a" * 300, "file name too long"), ("a\0b", "null"), ("loop", "too many levels")],
)
def test_a_path_that_cannot_be_looked_at_says_why(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for look in (kind_of, read_bytes):
        with pytest.raises(PathError, match=why):
            look(tmp_path / name)
    assert not is_file(tmp_path / name)


def test_only_regular_files_are_read_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PathError, match="a pipe or device"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(PathError, match="a folder"):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "nothing")
