"""The folder of a ladder: its layout, who climbs it, and its ``status.json``.

``runs/<name>/`` holds::

    ladder.yaml     the merged ladder file
    lineage.json    what each rung started from and ended with; see ``lineage``
    status.json     state, rung, pid, exit code, reason; replaced atomically
    rungs/01-sft/   an ordinary run, one for each rung that has been started
    carried/        what a rung knew of its prompts, for the next one
    evaluation/     held-out answers of the base model and of the rungs
    LOCK            held by the process that climbs; empty
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.lineage import Lineage, read_lineage
from cluster.run_directory import RunDirectory, write_json
from safeladder.config_loading import merged, read_tree, to_yaml
from safeladder.errors import (
    EnvironmentUnfitError,
    NotResumableError,
    RunExistsError,
    SafeladderError,
)
from safeladder.ladder_config import Ladder, ladder_of
from safeladder.paths import PathError, is_file, kind_of, read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderStatus:
    """What ``status.json`` says."""

    state: Literal["climbing", "finished", "failed"]
    pid: int
    rung: str = ""
    """Run of the rung that is climbed, or was last."""
    exit_code: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LadderDirectory:
    """Paths of one ladder."""

    path: Path

    @classmethod
    def create(cls, ladder: Ladder) -> LadderDirectory:
        """Make the folder, whole or not at all: one that is there can be resumed. Of drivers that
        start at once only one succeeds. Raises ``RunExistsError``, ``EnvironmentUnfitError``."""
        found = cls(ladder.directory)
        partial = cls(found.path.with_name(f".{found.path.name}.{os.getpid()}"))
        try:
            partial.rungs.mkdir(parents=True, exist_ok=True)
            partial.file.write_text(to_yaml(ladder.tree), encoding="utf-8")
            Lineage(ladder.name).write(partial.lineage)
            partial.path.rename(found.path)
        except OSError as error:
            shutil.rmtree(partial.path, ignore_errors=True)
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise _exists(found.path) from None
            raise EnvironmentUnfitError(
                f"{found.path}: the ladder's folder cannot be written: {error.strerror}; set "
                "run.root to another place"
            ) from None
        return found

    @classmethod
    def open(cls, path: Path) -> LadderDirectory:
        """The folder of an earlier climb. Raises ``NotResumableError`` if it holds none."""
        found = cls(path)
        if not is_ladder_folder(path):
            raise NotResumableError(f"{path} holds no ladder: there is no lineage.json in it")
        return found

    @property
    def file(self) -> Path:
        return self.path / "ladder.yaml"

    @property
    def lineage(self) -> Path:
        return self.path / "lineage.json"

    @property
    def rungs(self) -> Path:
        return self.path / "rungs"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def run(self, folder: str) -> RunDirectory:
        """The run of a rung, there or not."""
        return RunDirectory(self.rungs / folder)

    def ladder(self) -> Ladder:
        """What is climbed. Its folder may have been moved since: runs are looked for below it."""
        tree = read_tree(self.file)
        place = {"name": self.path.name, "root": str(self.path.parent)}
        return ladder_of(merged(tree, {"run": place}))

    def read_lineage(self) -> Lineage:
        """Raises ``NotResumableError``."""
        return read_lineage(self.lineage)

    def status(self) -> LadderStatus | None:
        """The last status; None if none was written or it cannot be read."""
        try:
            return LadderStatus(**json.loads(read_bytes(self.path / "status.json")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def write_status(self, status: LadderStatus) -> None:
        """Replace ``status.json``."""
        write_json(self.path / "status.json", asdict(status))

    @contextmanager
    def climbed_by_this_process(self) -> Iterator[None]:
        """Keep other climbers out, and let ``status.json`` say how it ended. Raises
        ``RunExistsError`` if another process is at it."""
        with (self.path / "LOCK").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunExistsError(
                    f"{self.path} is being climbed by another process; wait for it or end it"
                ) from None
            self.write_status(LadderStatus(state="climbing", pid=os.getpid()))
            try:
                yield
            except BaseException as error:
                self._record_failure(error)
                raise
            last = self.status() or LadderStatus(state="finished", pid=os.getpid())
            self.write_status(replace(last, state="finished", exit_code=0))

    def _record_failure(self, error: BaseException) -> None:
        last = self.status() or LadderStatus(state="failed", pid=os.getpid())
        code = error.exit_code if isinstance(error, SafeladderError) else 1
        reason = f"{type(error).__name__}: {error}"
        self.write_status(replace(last, state="failed", exit_code=code, reason=reason))


def is_ladder_folder(path: Path) -> bool:
    """Whether a ladder was begun in it; never raises."""
    return is_file(path / "lineage.json")


def require_absent(ladder: Ladder) -> None:
    """Raise ``RunExistsError`` if the ladder's folder is there."""
    try:
        kind = kind_of(ladder.directory)
    except PathError as error:
        raise EnvironmentUnfitError(f"{ladder.directory}: {error}; set run.root") from None
    if kind is not None:
        raise _exists(ladder.directory)


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(
        f"{path} already exists: choose another run.name, or go on with it by "
        f"`safeladder resume {path}`"
    )
