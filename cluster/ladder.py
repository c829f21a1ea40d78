"""Climbing: the rungs of a ladder as ordinary runs, one after the other.

::

    lineage: rung started ─▶ run trains ─▶ run finished ─▶ lineage: rung ended ─▶ next rung
             (from what)     or resumes    (status.json)   (with what, why)

Each arrow is a place at which the process may die: what is on disk says where the next climber goes
on, and nothing that has finished is done again. What happens within a run is not known here.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.carry_over import with_last_weights
from cluster.curriculum_state import starting_from_state, write_curriculum_state
from cluster.ladder_directory import LadderDirectory, LadderStatus
from cluster.lineage import (
    Lineage,
    RungRecord,
    Weights,
    base_weights,
    checkpoint_weights,
    require_unchanged,
)
from cluster.run_directory import RunDirectory, host_facts
from learners.checkpoints import committed
from safeladder.config import Config
from safeladder.config_loading import config_hash
from safeladder.errors import NotResumableError
from safeladder.ladder_config import Ladder, Rung
from safeladder.paths import read_bytes


@dataclass(frozen=True, slots=True)
class Runner:
    """How one run is carried out; the driver's functions, or those of a test."""

    train: Callable[[Config], int]
    """A new run, to its end."""
    resume: Callable[[Path], int]
    """One that was begun."""
    newest_checkpoint: Callable[[RunDirectory], Path | None]
    """What a finished run has left, once it has verified."""


class Climb:
    """One climb, from the first rung or from where the last climber was stopped."""

    def __init__(
        self,
        directory: LadderDirectory,
        runner: Runner,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._directory = directory
        self._ladder: Ladder = directory.ladder()
        self._lineage: Lineage = directory.read_lineage()
        self._runner = runner
        self._say = say

    def to_the_top(self) -> None:
        """Climb every rung that has not ended. Raises what a run raises, and
        ``NotResumableError`` where the lineage does not hold."""
        names = [record.name for record in self._lineage.rungs]
        if names != [rung.name for rung in self._ladder.rungs[: len(names)]]:
            raise NotResumableError(
                f"{self._directory.path}: lineage.json has the rungs {', '.join(names)}, "
                "ladder.yaml begins with others; restore it, or climb anew under another run.name"
            )
        for rung in self._ladder.rungs:
            if rung.number <= len(names) and self._lineage.rungs[rung.number - 1].end is not None:
                self._say(f"rung {rung.folder}: ended before")
            else:
                self._climb(rung)

    def _climb(self, rung: Rung) -> None:
        status = self._directory.status()
        if status is not None:
            self._directory.write_status(replace(status, rung=rung.folder))
        record = self._started(rung)
        start = require_unchanged(record.start, self._directory.path)
        run = self._directory.run(rung.folder)
        state = _state_of(run)
        if state == "absent":
            self._say(f"rung {rung.folder}: starts from {start}")
            if rung.carry_over.curriculum:
                write_curriculum_state(self._before(rung), self._carried(rung))
            self._runner.train(self._config_of(rung, start))
        elif state == "begun":
            self._say(f"rung {rung.folder}: goes on")
            self._runner.resume(run.path)
        self._end(record, run)

    def _started(self, rung: Rung) -> RungRecord:
        """The rung's record, made before its run if there is none."""
        if rung.number <= len(self._lineage.rungs):
            return self._lineage.rungs[rung.number - 1]
        start = self._start_of(rung)
        record = RungRecord(
            number=rung.number,
            name=rung.name,
            run=rung.folder,
            stage=rung.config.stage,
            config_sha256=config_hash(self._config_of(rung, start.folder(self._directory.path))),
            start=start,
            started_unix_s=time.time(),
            host=host_facts(),
        )
        self._write(record)
        return record

    def _config_of(self, rung: Rung, start: Path) -> Config:
        """The config of its run, with what it takes over from the one before."""
        config = rung.starting_from(start)
        if rung.carry_over.curriculum:
            config = starting_from_state(config, self._carried(rung))
        if rung.carry_over.constraint_weights:
            config = with_last_weights(config, self._before(rung))
        return config

    def _before(self, rung: Rung) -> RunDirectory:
        return self._directory.run(self._lineage.rungs[rung.number - 2].run)

    def _carried(self, rung: Rung) -> Path:
        return self._directory.path / "carried" / f"{rung.folder}-curriculum.json"

    def _start_of(self, rung: Rung) -> Weights:
        if rung.number == 1:
            return base_weights(rung.config.model.path)
        before = self._lineage.rungs[rung.number - 2].end
        assert before is not None, f"{rung.folder} is climbed before the rung below it has ended"
        return before

    def _end(self, record: RungRecord, run: RunDirectory) -> None:
        """A finished run becomes a rung that others may start from."""
        checkpoint = self._runner.newest_checkpoint(run)
        if checkpoint is None:
            raise NotResumableError(f"{run.path} has finished and left no checkpoint")
        end = checkpoint_weights(checkpoint, self._directory.path)
        summary = _summary(run)
        reason = summary.get("exit")
        probes = summary.get("probes")
        self._write(
            replace(
                record,
                end=end,
                steps=end.step,
                exit=reason if isinstance(reason, dict) else {"reason": "steps"},
                probes=probes if isinstance(probes, dict) else {},
                ended_unix_s=time.time(),
            )
        )
        self._say(f"rung {record.run}: ended at step {end.step} with {checkpoint}")

    def _write(self, record: RungRecord) -> None:
        self._lineage = self._lineage.with_rung(record)
        self._lineage.write(self._directory.lineage)


def climb(directory: LadderDirectory, runner: Runner, say: Callable[[str], None]) -> int:
    """Climb to the top and say so in ``status.json``; returns the exit code."""
    with directory.climbed_by_this_process():
        Climb(directory, runner, say).to_the_top()
    return 0


def require_unfinished(directory: LadderDirectory) -> None:
    """Raise ``NotResumableError`` if every rung has ended."""
    status: LadderStatus | None = directory.status()
    if status is not None and status.state == "finished":
        raise NotResumableError(
            f"{directory.path} has already climbed all of its rungs: there is nothing to go on "
            "with; climb another ladder under another run.name"
        )


def _state_of(run: RunDirectory) -> str:
    """``absent``, ``begun`` or ``finished``. What a driver left that died while it made the folder
    is taken away: it writes ``status.json`` last, and trains nothing before."""
    status = run.status()
    if status is not None and status.state == "finished":
        return "finished"
    if status is not None:
        return "begun"
    if run.path.is_dir() and not (run.ledger.exists() or committed(run.checkpoints)):
        shutil.rmtree(run.path)
    return "begun" if run.path.exists() else "absent"


def _summary(run: RunDirectory) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(run.summary))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
