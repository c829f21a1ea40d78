"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safeladder.errors import ConfigError


def replace_file(path: Path, parts: Iterable[str | bytes]) -> None:
    """Write the parts beside ``path``, text as UTF-8, flush them to the disk, then rename; whatever
    stood there is replaced. Any exception, an ``OSError`` too, leaves ``path`` as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.writelines(part.encode() if isinstance(part, str) else part for part in parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """``replace_file`` for a place that a user names: raises ``ConfigError`` where it cannot be
    written."""
    try:
        replace_file(path, parts)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name a file in a folder "
                          "of yours") from None  # fmt: skip
