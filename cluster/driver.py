"""What ``safeladder train`` and ``safeladder resume`` call: check first, then run.

Nothing heavy is imported before everything has been checked, so that a mistake is told within
seconds. Owns the signal that ends a run in order; ``cluster.run`` has the stages.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.checks import preflight
from cluster.ledger import taken_back
from cluster.placement import arm_commit_points
from cluster.run_directory import RunDirectory
from learners.checkpoints import committed, newest_valid
from safeladder.config import Config
from safeladder.errors import NotResumableError, PreemptedError

log = logging.getLogger(__name__)


def train(config: Config) -> int:
    """Run ``config`` in a new run directory; returns the exit code. Raises ``SafeladderError``."""
    RunDirectory.require_absent(config)
    preflight(config)
    with preemptible():
        directory = RunDirectory.create(config)
        return _execute(config, directory, checkpoint=None, initial=config.model.path)


def resume(run_dir: Path) -> int:
    """Go on with an earlier run from its newest checkpoint that verifies. Raises
    ``NotResumableError`` for a run that has finished."""
    directory = RunDirectory.open(run_dir)
    config = directory.config()
    status = directory.status()
    if status is not None and status.state == "finished":
        raise NotResumableError(
            f"{run_dir} has already finished all of its {config.run.steps} steps: there is nothing "
            f"to go on with; train longer under another run.name"
        )
    checkpoint, skipped = newest_checkpoint(directory)
    initial = config.model.path if checkpoint is None else initial_policy(config, directory)
    preflight(config)
    with preemptible():
        return _execute(config, directory, checkpoint, initial, skipped)


def newest_checkpoint(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that is skipped.

    None if the run ended before it had finished its first one: it then begins anew, in its own
    ledger. Raises ``NotResumableError`` if there were some and none is left.
    """
    skipped: list[tuple[Path, str]] = []
    for root in (directory.checkpoints, directory.initial):
        path, _, unusable = newest_valid(
            root, veto=lambda found: taken_back(directory.ledger, found.fence, found.step)
        )
        skipped += unusable
        if path is not None:
            sentences = [f"checkpoint {place.name} is skipped: {why}" for place, why in skipped]
            for sentence in sentences:
                log.warning(sentence)
            return path, sentences
    if not any(committed(root) for root in (directory.checkpoints, directory.initial)):
        log.warning("no checkpoint was finished: the run begins anew")
        return None, [why for _, why in skipped]
    reasons = "; ".join(f"{path.name}: {why}" for path, why in skipped) or "all are gone"
    raise NotResumableError(f"{directory.path} has no checkpoint to continue from ({reasons})")


def initial_policy(config: Config, directory: RunDirectory) -> Path:
    """The policy as RL found it, which is the reference: the base model, or what the supervised
    rung made of it. Raises ``NotResumableError`` if the latter is needed and does not verify."""
    if config.sft is None or not config.reference.enabled:
        return config.model.path
    path, _, unusable = newest_valid(directory.initial)
    if path is None:
        reasons = "; ".join(why for _, why in unusable) or "nothing is there"
        raise NotResumableError(
            f"{directory.initial}: the reference policy that the supervised rung left does not "
            f"verify ({reasons}), and training on with another one would change the objective"
        )
    return path


@contextmanager
def preemptible() -> Iterator[None]:
    """While it is open, SIGTERM raises ``PreemptedError`` where the program stands; one more does
    not disturb the way out."""
    previous = signal.signal(signal.SIGTERM, _preempt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _preempt(*_: object) -> None:
    if not isinstance(sys.exception(), PreemptedError):
        raise PreemptedError("told to stop by SIGTERM; go on by `safeladder resume`")


def _execute(
    config: Config,
    directory: RunDirectory,
    checkpoint: Path | None,
    initial: Path,
    skipped: Sequence[str] = (),
) -> int:
    from cluster.run import Run

    arm_commit_points()
    return Run(config, directory, checkpoint, initial, skipped).execute()
