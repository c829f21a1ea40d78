"""Named points of a run at which a crash is worth trying.

They stand right before and after what is durable or visible to others: writes of the ledger,
calls to actors, files of batches and checkpoints, publications, the stages of a run. ``reached``
costs one comparison until a plan is armed, which only tests ask for; ``make chaos`` kills a driver
at each of them, and then resumes it. A process counts for itself how often it has come by.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safeladder.errors import ConfigError

VARIABLE = "SAFELADDER_COMMIT_POINT"
"""``NAME``, ``NAME:3`` (the third time) or ``NAME:3:stop`` (SIGSTOP instead of SIGKILL)."""
LOG_VARIABLE = "SAFELADDER_COMMIT_POINT_LOG"
"""File to which every point that is reached is appended as a line of JSON."""

_STATES = ("leased", "generated", "scored", "admitted", "trained", "dropped")
_CALLS = ("generate", "score", "load_weights", "train", "publish", "save_checkpoint")
POINTS: Mapping[str, str] = {
    "fence.read": "driver: in the resume transaction, nothing changed yet",
    "fence.written": "driver: groups taken back and fence raised, not committed",
    "fence.committed": "driver: the run is this driver's",
    "services.started": "driver: the run's verifier services answer",
    "ray.started": "driver: Ray is up, no actor yet",
    "crew.up": "driver: the learner and one actor of each fleet are up",
    "evaluation.written": "driver: held-out answers of a stage are on disk",
    **{f"{s}.written": f"driver: groups become {s} in the ledger, not committed" for s in _STATES},
    **{f"{s}.committed": f"driver: groups are {s} in the ledger" for s in _STATES},
    **{f"{c}.asked": f"driver: about to send a call `{c}`" for c in _CALLS},
    **{f"{c}.sent": f"driver: a call `{c}` is on its way" for c in _CALLS},
    "batch.begun": "learner: about to write a step's batch",
    "batch.written": "learner: the batch is on disk under another name",
    "batch.renamed": "learner: the batch has its name, the step is not taken",
    "optimizer.stepped": "learner: the weights are new, nobody was told",
    "step.told": "driver: the learner has reported a step, the ledger has not heard",
    "publication.gathered": "learner: the tensors of a version are gathered",
    "publication.stored": "learner: they are in the object store, nobody was told",
    "publication.told": "driver: a version is reported, but does not exist yet",
    "publication.committed": "driver: the version exists, no engine was told",
    "checkpoint.folder_made": "learner: the partial folder is there, and empty",
    "checkpoint.file_written": "learner: one more file of it is durable",
    "checkpoint.manifest_written": "learner: the manifest is durable in it",
    "checkpoint.synced": "learner: the folder is whole under its partial name",
    "checkpoint.renamed": "learner: the folder has its name, LATEST names an older one",
    "checkpoint.latest_written": "learner: the new LATEST is durable under another name",
    "checkpoint.latest_replaced": "learner: LATEST names the new one, old ones are there",
    "checkpoint.retired": "learner: old ones are gone, nobody was told",
    "loop.finished": "driver: all steps are trained and saved",
    "summary.written": "driver: summary.json is there, status.json says running",
    "run.finished": "driver: status.json says finished, the process has not ended",
}
"""Name → which process has just done what."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to do at which point."""

    point: str | None
    occurrence: int
    signal: int
    log: Path | None
    seen: Counter[str] = field(default_factory=Counter)

    def reach(self, point: str, detail: object) -> None:
        assert point in POINTS, point
        self.seen[point] += 1
        if self.log is not None:
            self._note(self.log, point, detail)
        if point == self.point and self.seen[point] == self.occurrence:
            os.kill(os.getpid(), self.signal)

    def _note(self, log: Path, point: str, detail: object) -> None:
        row = {"point": point, "detail": str(detail), "pid": os.getpid(), "unix_s": time.time()}
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(row) + "\n").encode())
        finally:
            os.close(descriptor)


_plan: _Plan | None = None


def arm(order: str | None, log: str | None) -> None:
    """Put the plan of the two environment variables in force; none if both are None.

    Raises ``ConfigError`` for a point that does not exist.
    """
    global _plan
    if order is None and log is None:
        _plan = None
        return
    name, _, rest = (order or "").partition(":")
    occurrence, _, action = rest.partition(":")
    actions = {"": signal.SIGKILL, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}
    if order is not None and name not in POINTS:
        raise ConfigError(f"{VARIABLE}={order}: no such point; there are {', '.join(POINTS)}")
    if action not in actions or not (occurrence or "1").isdecimal():
        raise ConfigError(f"{VARIABLE}={order}: write NAME, NAME:3 or NAME:3:stop")
    _plan = _Plan(
        name if order is not None else None,
        int(occurrence or 1),
        actions[action],
        None if log is None else Path(log),
    )


def reached(point: str, detail: object = "") -> None:
    """Say that this process stands at a point."""
    if _plan is not None:
        _plan.reach(point, detail)


def reached_for(kinds: Iterable[str], place: str, detail: object = "") -> None:
    """Reach ``KIND.PLACE``, once for each kind for which there is such a point."""
    if _plan is not None:
        for kind in dict.fromkeys(kinds):
            if (point := f"{kind}.{place}") in POINTS:
                _plan.reach(point, detail)
