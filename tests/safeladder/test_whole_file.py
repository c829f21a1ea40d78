"""A file is there whole, or as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from safeladder.errors import ConfigError
from safeladder.whole_file import write_whole


def test_a_reader_of_the_old_file_never_sees_a_part_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_whole(path, ["old\n"])
    with path.open() as reader:
        write_whole(path, ["new\n", "newer\n"])
        assert reader.read() == "old\n"
    assert path.read_text() == "new\nnewer\n"
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


def test_parts_that_fail_leave_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_whole(path, ["old\n"])

    def parts() -> Iterator[str]:
        yield "new\n"
        raise ValueError("a bad row")

    with pytest.raises(ValueError, match="a bad row"):
        write_whole(path, parts())
    assert path.read_text() == "old\n"
    assert [one.name for one in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/rows\.jsonl: cannot be written"):
        write_whole(tmp_path / "nowhere" / "rows.jsonl", ["a"])
