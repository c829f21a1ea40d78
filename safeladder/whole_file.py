"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safeladder.errors import ConfigError


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write the parts beside ``path``, flush them to the disk, then rename; whatever stood there is
    replaced. An exception of ``parts`` leaves ``path`` as it was. Raises ``ConfigError`` where it
    cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name a file in a folder "
                          "of yours") from None  # fmt: skip
    finally:
        partial.unlink(missing_ok=True)
