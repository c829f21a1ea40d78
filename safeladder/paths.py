"""Paths that a user names: what is there, and its bytes, or the reason why neither can be had.

The standard calls answer a path without permission, of too many characters or with a NUL by an
exception, and wait for ever on a pipe; here each of these is one ``PathError``.
"""

from __future__ import annotations

import stat
from io import BufferedReader
from pathlib import Path
from typing import Literal

Kind = Literal["file", "folder", "other"]


class PathError(ValueError):
    """Why a path cannot be looked at or read, in words that fit into a sentence."""


def kind_of(path: Path) -> Kind | None:
    """What is at ``path``, links followed; None if nothing is. Raises ``PathError``."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise PathError(_reason(error)) from None
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def is_file(path: Path) -> bool:
    """Whether a regular file can be seen there; never raises."""
    try:
        return kind_of(path) == "file"
    except PathError:
        return False


def read_bytes(path: Path) -> bytes:
    """Content of a regular file. Raises ``FileNotFoundError`` if nothing is there, ``PathError``
    for all else."""
    with open_bytes(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise PathError(_reason(error)) from None


def open_bytes(path: Path) -> BufferedReader:
    """A regular file, open for reading. Raises as ``read_bytes``."""
    kind = kind_of(path)
    if kind is None:
        raise FileNotFoundError(path)
    if kind != "file":
        raise PathError("a folder" if kind == "folder" else "a pipe or device, no regular file")
    try:
        return path.open("rb")
    except OSError as error:
        raise PathError(_reason(error)) from None


def refuse_pipe(path: Path) -> None:
    """Raise ``PathError`` for what a reader would wait for; all else is for the reader to find."""
    if kind_of(path) == "other":
        raise PathError("a pipe or device, no regular file")


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error)).lower()
