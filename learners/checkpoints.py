"""Checkpoints on disk: written whole or not at all, verified before use, never unpickled.

::

    root/LATEST                     {"checkpoint": "step-20", "fence": 3}, replaced atomically
    root/FENCE                      {"fence": 3}, of the driver that took the run over last
    root/step-20/model.safetensors  with config and tokenizer files: AutoModelForCausalLM and vLLM
                                    load the folder as it is
    root/step-20/model.safetensors.index.json   which file holds which weight: engines that would
                                    read every *.safetensors leave the others alone
    root/step-20/value_head.safetensors  only if the objective has a value head
    root/step-20/optimizer.safetensors   AdamW moments (and masters) in fp32
    root/step-20/rng.safetensors    torch generator states
    root/step-20/manifest.json      step, version, fence, SHA-256 of every other file

Order of a commit: files and manifest into ``.partial-*`` (each fsynced), rename, fsync of the
parent, ``LATEST``. Owns this layout; the tensors come from the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from learners.disk import naming_the_disk, sync_directory
from safeladder.commit_points import reached
from safeladder.errors import ChecksumError, FencedError, NotResumableError
from safeladder.paths import is_file, read_bytes

WEIGHTS, OPTIMIZER, RNG = "model.safetensors", "optimizer.safetensors", "rng.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST, LATEST, FENCE, PARTIAL = "manifest.json", "LATEST", "FENCE", ".partial-"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".safetensors.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """What a checkpoint says of itself."""

    step: int
    version: int
    fence: int
    num_updates: int
    """AdamW updates since its state was zero."""
    dtype: str
    """Of the weights."""
    config_sha256: str
    """Digest of the resolved config of the run that wrote it."""
    extra: Mapping[str, str] = field(default_factory=dict)
    """The driver's own entries, for example the ledger's watermark."""
    files: Mapping[str, str] = field(default_factory=dict)
    """File name → hex SHA-256."""

    @property
    def age(self) -> tuple[int, int]:
        """Sort key: a later driver's checkpoint is newer, whatever its step."""
        return self.fence, self.step


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """The manifest as it stands; file contents are not checked. Raises ``NotResumableError``."""
    try:
        manifest = CheckpointManifest(**json.loads(read_bytes(checkpoint / MANIFEST)))
        _require_types(manifest)
        return manifest
    except FileNotFoundError:
        raise NotResumableError(f"{checkpoint} has no {MANIFEST}: it was not finished") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise NotResumableError(f"{checkpoint / MANIFEST} cannot be read: {error}") from error


def _require_types(manifest: CheckpointManifest) -> None:
    """Raise ``TypeError`` for a manifest whose fields are not what they say."""
    numbers = (manifest.step, manifest.version, manifest.fence, manifest.num_updates)
    texts = [manifest.dtype, manifest.config_sha256]
    for table in (manifest.extra, manifest.files):
        if not isinstance(table, dict):
            raise TypeError(f"{table!r} is no table of names")
        texts += [*table, *table.values()]
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"step, version, fence and num_updates are {numbers}, not whole numbers")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a name or checksum is no text")


def verify(checkpoint: Path) -> CheckpointManifest:
    """Read every file and compare it with the manifest. Raises ``NotResumableError``, or its kind
    ``ChecksumError`` for bytes that differ."""
    manifest = read_manifest(checkpoint)
    for name, expected in manifest.files.items():
        path = checkpoint / name
        if not is_file(path):
            raise NotResumableError(f"{checkpoint} lacks {name}")
        if (found := _sha256(path)) != expected:
            raise ChecksumError(
                f"{path} differs from its SHA-256 in {MANIFEST}: it has {found[:16]}…, expected "
                f"was {expected[:16]}…"
            )
    return manifest


Veto = Callable[[CheckpointManifest], str | None]
"""Why a checkpoint must not be used though it is whole; None if it may."""


def newest_valid(
    root: Path, up_to: int | None = None, veto: Veto = lambda manifest: None
) -> tuple[Path | None, CheckpointManifest | None, list[tuple[Path, str]]]:
    """The newest checkpoint that verifies, of step ``up_to`` at most if given, and each newer one
    with the reason why it was skipped: one without a manifest that can be read, one with a file
    that is missing or differs, one whose writer was ended, one that ``veto`` refuses.

    (None, None, reasons) if there is none. Highest fence first, then highest step.
    """
    skipped: list[tuple[Path, str]] = []
    newest: tuple[Path, CheckpointManifest] | None = None
    for path, manifest in _by_age(root, skipped):
        if up_to is not None and manifest.step > up_to:
            continue
        if (why := veto(manifest)) is not None:
            skipped.append((path, why))
            continue
        try:
            newest = path, verify(path)
            break
        except NotResumableError as error:
            skipped.append((path, str(error)))
    found, manifest_found = newest or (None, None)
    skipped += _unfinished(root, manifest_found.age if manifest_found else (-1, -1))
    return found, manifest_found, skipped


def committed(root: Path) -> bool:
    """Whether a checkpoint was ever finished below ``root``, sound or not."""
    return (root / LATEST).exists() or any(root.glob("step-*"))


def inventory(root: Path) -> frozenset[tuple[str, int]]:
    """(folder, time of commit in ns) of each finished checkpoint: equal if none came or went."""
    return frozenset(
        (path.parent.name, path.stat().st_mtime_ns) for path in root.glob(f"step-*/{MANIFEST}")
    )


def latest_fence(root: Path) -> int:
    """Fence of the driver that ``root`` belongs to: it committed the last checkpoint, or has taken
    the run over since; -1 if there is none."""
    return max(_fence_in(root / LATEST), _fence_in(root / FENCE))


def _fence_in(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["fence"])
    except FileNotFoundError:
        return -1
    except (ValueError, KeyError, TypeError) as error:
        raise NotResumableError(f"{path} cannot be read: {error}") from error


def take_over(root: Path, fence: int) -> None:
    """From now on no driver with a lower fence commits or retires a checkpoint below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    partial = root / f"{PARTIAL}{FENCE}-{fence}"
    write_durably(partial, json.dumps({"fence": fence}).encode())
    partial.replace(root / FENCE)
    sync_directory(root)


def refuse_lower_fence(root: Path, fence: int) -> None:
    """Raise ``FencedError`` if a newer driver has committed a checkpoint below ``root``."""
    latest = latest_fence(root)
    if latest > fence:
        raise FencedError(
            f"{root} belongs to a driver with fence {latest}; this one has fence {fence} and must "
            "not write checkpoints"
        )


def commit_checkpoint(
    root: Path,
    manifest: CheckpointManifest,
    write_files: Callable[[Path], Mapping[str, str]],
    *,
    keep: int,
) -> Path:
    """Let ``write_files(folder)`` write durable files and return their SHA-256, then commit.

    Keeps the ``keep`` newest checkpoints. Raises ``FencedError``, ``EnvironmentUnfitError`` on a
    full disk; in both cases nothing of this checkpoint stays.
    """
    target = root / f"step-{manifest.step}"
    partial = root / f"{PARTIAL}{manifest.fence}-{target.name}"
    with naming_the_disk(root):
        refuse_lower_fence(root, manifest.fence)
        root.mkdir(parents=True, exist_ok=True)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            reached("checkpoint.folder_made")
            files = write_files(partial)
            text = json.dumps({**asdict(manifest), "files": dict(files)}, indent=1)
            write_durably(partial / MANIFEST, text.encode())
            reached("checkpoint.manifest_written")
            sync_directory(partial)
            reached("checkpoint.synced")
            refuse_lower_fence(root, manifest.fence)
            _replace_directory(partial, target)
            reached("checkpoint.renamed")
        except FileNotFoundError:
            # A newer driver has cleared our partial folder away.
            refuse_lower_fence(root, manifest.fence)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        latest = json.dumps({"checkpoint": target.name, "fence": manifest.fence})
        write_durably(root / f"{PARTIAL}{LATEST}", latest.encode())
        reached("checkpoint.latest_written")
        (root / f"{PARTIAL}{LATEST}").replace(root / LATEST)
        sync_directory(root)
    reached("checkpoint.latest_replaced")
    _retire(root, keep, manifest.fence)
    reached("checkpoint.retired")
    return target


def copy_model_files(source: Path, folder: Path, dtype: str) -> dict[str, str]:
    """Copy everything but weights (config, generation config, tokenizer, chat template), with the
    dtype of the new weights in config.json. Returns file name → SHA-256."""
    written: dict[str, str] = {}
    for path in sorted(source.iterdir()):
        is_ours = path.name == MANIFEST or path.name.startswith(".")
        if not path.is_file() or is_ours or path.name.endswith(WEIGHT_SUFFIXES):
            continue
        data = path.read_bytes()
        if path.name == "config.json":
            config = json.loads(data) | {"dtype": dtype}
            config.pop("torch_dtype", None)
            data = json.dumps(config, indent=2).encode()
        written[path.name] = write_durably(folder / path.name, data)
        reached("checkpoint.file_written", path.name)
    return written


def write_index(folder: Path, names: Iterable[str]) -> str:
    """Say in ``INDEX`` that all weights are in ``WEIGHTS``; returns its SHA-256."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, WEIGHTS)}
    return write_durably(folder / INDEX, json.dumps(index, indent=1).encode())


def write_durably(path: Path, data: bytes) -> str:
    """Write and fsync; returns the SHA-256."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _by_age(
    root: Path, skipped: list[tuple[Path, str]]
) -> Iterator[tuple[Path, CheckpointManifest]]:
    """Checkpoints with a readable manifest, newest first; the others go to ``skipped``."""
    found: list[tuple[Path, CheckpointManifest]] = []
    for path in sorted(root.glob("step-*")) if root.is_dir() else []:
        try:
            manifest = read_manifest(path)
        except NotResumableError as error:
            skipped.append((path, str(error)))
            continue
        if path.name == f"step-{manifest.step}":
            found.append((path, manifest))
        else:
            skipped.append((path, f"{path / MANIFEST} is of step {manifest.step}"))
    yield from sorted(found, key=lambda pair: pair[1].age, reverse=True)


def _unfinished(root: Path, age: tuple[int, int]) -> Iterator[tuple[Path, str]]:
    """What killed writers left that would be newer than ``age``."""
    for path in sorted(root.glob(f"{PARTIAL}*-step-*")):
        fence, _, step = path.name.removeprefix(PARTIAL).partition("-step-")
        if fence.isdecimal() and step.isdecimal() and (int(fence), int(step)) > age:
            yield path, f"{path} is partial: its writer was ended before it was whole"


def _replace_directory(partial: Path, target: Path) -> None:
    """Rename into place; an older checkpoint of the same step (a resumed run) gives way."""
    old = partial.with_name(f"{partial.name}-replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _retire(root: Path, keep: int, fence: int) -> None:
    """Delete finished checkpoints beyond the newest ``keep``, those that a later driver did not go
    on from (it went back behind them), and what killed writes of this and of earlier drivers left.
    """
    kept: list[int] = []
    for path, manifest in _by_age(root, []):
        if len(kept) < keep and manifest.step < min(kept, default=manifest.step + 1):
            kept.append(manifest.step)
        else:
            refuse_lower_fence(root, fence)  # a later driver may have chosen this one
            shutil.rmtree(path)
    for path in root.glob(f"{PARTIAL}*-step-*"):
        if int(path.name.removeprefix(PARTIAL).partition("-")[0]) <= fence:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
