"""What a failed write means: a full disk is the environment's fault, and is named."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from safeladder.errors import EnvironmentUnfitError


@contextlib.contextmanager
def naming_the_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" inside the block into ``EnvironmentUnfitError`` with the path."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EnvironmentUnfitError(
            f"the disk that holds {path} is full: free some space, or set run.root elsewhere"
        ) from error


def sync_directory(path: Path) -> None:
    """Make renames inside the folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
