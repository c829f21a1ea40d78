"""``live.json``: one look at a run that is going on, for who asks from outside.

Replaced about once a second. Not flushed to the disk: it is worth nothing after a crash, and says
itself how old it is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.coordinator_status import CoordinatorStatus
from cluster.run_directory import RunDirectory
from safeladder.paths import PathError, read_bytes

LAST_S = 1e11
"""No clock shows a later time."""


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What the coordinator last said of itself."""

    unix_s: float
    """When."""
    version: int
    published_version: int
    running_step: int | None
    paused_by: str | None
    counts: Mapping[str, int]
    """State → groups."""
    waits: tuple[str, ...]
    """Who waits for whom, one sentence each."""

    @property
    def age_s(self) -> float:
        """Seconds since it was written."""
        return time.time() - self.unix_s


def write_live(run: RunDirectory, status: CoordinatorStatus) -> None:
    """Replace the file: a reader sees the old or the new one, never a part. A disk that is full is
    for those to tell who write what matters."""
    look = {
        "unix_s": time.time(),
        "version": status.version,
        "published_version": status.published_version,
        "running_step": status.running_step,
        "paused_by": status.paused_by,
        "counts": dict(status.counts),
        "waits": list(status.waits),
    }
    path = run.path / "live.json"
    partial = path.with_name(f".live.json.{os.getpid()}")
    try:
        partial.write_text(json.dumps(look, ensure_ascii=False), encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def read_live(run: RunDirectory) -> LiveStatus | None:
    """The last look; None if there is none, or none that can be read."""
    try:
        fields = json.loads(read_bytes(run.path / "live.json"))
        look = LiveStatus(**{**fields, "waits": tuple(fields["waits"])})
        return look if _is_sound(look) else None
    except (FileNotFoundError, PathError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _is_sound(look: LiveStatus) -> bool:
    is_time = isinstance(look.unix_s, float) and 0 <= look.unix_s < LAST_S
    is_text = all(isinstance(wait, str) for wait in look.waits)
    counts = look.counts.values() if isinstance(look.counts, dict) else (None,)
    return is_time and is_text and all(type(count) is int for count in counts)
