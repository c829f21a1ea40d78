"""``lineage.json`` of a ladder: from what each rung started, what it ended with, and why it ended.

Written twice for each rung: before its run is made, and after its last checkpoint has verified. A
reader sees the file before or after a change, never a part of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from cluster.run_directory import write_json
from learners.checkpoints import MANIFEST, verify
from safeladder.errors import ChecksumError, NotResumableError
from safeladder.paths import read_bytes

WHOLE_BYTES = 2**20
"""Files of a base model up to this size are hashed whole, larger ones by their two ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model on disk, and how it is known again."""

    path: str
    """Of a checkpoint: below the ladder's folder."""
    sha256: str
    """Of a checkpoint: its manifest, which holds the SHA-256 of every file. Of a base model: see
    ``fingerprint``."""
    is_checkpoint: bool
    step: int = 0
    fence: int = 0

    def folder(self, ladder: Path) -> Path:
        """Where it lies, given the ladder's folder."""
        return ladder / self.path if self.is_checkpoint else Path(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class RungRecord:
    """One rung that has been started."""

    number: int
    name: str
    run: str
    """Folder below ``rungs``."""
    stage: str
    config_sha256: str
    """Of the config that its run was started with."""
    start: Weights
    started_unix_s: float
    end: Weights | None = None
    """None until its run has finished and its last checkpoint has verified."""
    steps: int = 0
    exit: dict[str, Any] = field(default_factory=dict)
    """Why it ended: ``reason``, and what the reason was."""
    probes: dict[str, float] = field(default_factory=dict)
    """Last value of each probe."""
    host: dict[str, Any] = field(default_factory=dict)
    """Commit, package versions and machine at its start."""
    ended_unix_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """All rungs that have been started, in order."""

    ladder: str
    rungs: tuple[RungRecord, ...] = ()

    def with_rung(self, record: RungRecord) -> Lineage:
        """With one more rung, or the newest one replaced."""
        kept = self.rungs[: record.number - 1]
        return replace(self, rungs=(*kept, record))

    def write(self, path: Path) -> None:
        """Replace the file, durably."""
        write_json(path, asdict(self))


def read_lineage(path: Path) -> Lineage:
    """Raises ``NotResumableError`` for a file that is missing or is not what it was written as."""
    try:
        lineage = msgspec.json.decode(read_bytes(path), type=Lineage)
        numbers = [rung.number for rung in lineage.rungs]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError("rungs are missing")
        return lineage
    except FileNotFoundError:
        raise NotResumableError(f"{path} is not there: this is no ladder's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise NotResumableError(
            f"{path} cannot be read ({error}); restore it, or climb anew under another run.name"
        ) from None


def checkpoint_weights(checkpoint: Path, ladder: Path) -> Weights:
    """A checkpoint below the ladder's folder as lineage knows it, after reading all of it. Raises
    ``NotResumableError``."""
    manifest = verify(checkpoint)
    return Weights(
        path=str(checkpoint.relative_to(ladder)),
        sha256=_manifest_sha256(checkpoint),
        is_checkpoint=True,
        step=manifest.step,
        fence=manifest.fence,
    )


def base_weights(model: Path) -> Weights:
    """The model that a ladder starts from."""
    return Weights(path=str(model), sha256=fingerprint(model), is_checkpoint=False)


def require_unchanged(weights: Weights, ladder: Path) -> Path:
    """Where the weights lie, if they are what they were; every file of a checkpoint is read. Raises
    ``NotResumableError``, or its kind ``ChecksumError``."""
    path = weights.folder(ladder)
    if not weights.is_checkpoint:
        found = fingerprint(path)
    elif not path.exists():
        raise NotResumableError(
            f"{path}, from which the next rung starts, is not there any more; restore it, or climb "
            "anew under another run.name"
        )
    else:
        verify(path)
        found = _manifest_sha256(path)
    if found != weights.sha256:
        raise ChecksumError(
            f"{path} is not what the lineage says: it has {found[:16]}…, recorded is "
            f"{weights.sha256[:16]}…; restore it, or climb anew under another run.name"
        )
    return path


def fingerprint(model: Path) -> str:
    """Hex SHA-256 over the names and sizes of a model's files, the whole content of small ones and
    the first and last MiB of large ones: known again within seconds, whatever its size."""
    digest = hashlib.sha256()
    try:
        files = sorted(path for path in model.iterdir() if path.is_file())
        for path in files:
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as stream:
                digest.update(stream.read(WHOLE_BYTES))
                if size > WHOLE_BYTES:
                    stream.seek(max(WHOLE_BYTES, size - WHOLE_BYTES))
                    digest.update(stream.read())
    except OSError as error:
        raise NotResumableError(f"model {model} cannot be read: {error}") from None
    return digest.hexdigest()


def _manifest_sha256(checkpoint: Path) -> str:
    return hashlib.sha256(read_bytes(checkpoint / MANIFEST)).hexdigest()
