"""What a replay of steps needs, found before a model is loaded: a start, batches, records, and
whether bits can be compared. Everything that is missing or has changed is one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cluster.ledger import taken_back
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory
from cluster.step_records import Row, StepRecords
from learners.batches import UNREADABLE, batch_path, read_batch
from learners.checkpoints import newest_valid
from learners.step_log import CODE, environment, settings
from safeladder.config import Config
from safeladder.errors import ConfigError, NotResumableError
from safeladder.records import TrainingSample

_STEPS = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a replay will do, known before the model is loaded."""

    config: Config
    start: Path
    """Folder that the weights come from."""
    start_step: int
    last: int
    inexact: tuple[str, ...]
    """Why bits cannot be compared; none if they can."""
    skipped: tuple[str, ...]
    """Newer checkpoints that did not verify, each with the reason."""
    log: StepRecords

    @property
    def is_exact(self) -> bool:
        """Whether every bit must be the same."""
        return not self.inexact


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step. Raises ``ConfigError``.

    >>> parse_steps("3..5"), parse_steps("3")
    ((3, 5), (3, 3))
    """
    found = _STEPS.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"--steps {text!r} is no N..M of steps from 1 on, such as 3..5")
    return first, last


def plan_replay(run: RunDirectory, first: int, last: int) -> Plan:
    """Find a start for steps ``first`` to ``last`` and what they are compared with.

    Raises ``ConfigError`` for steps that were not trained, that lack their batch or record, or that
    were trained by another config than ``config.yaml`` says now; ``NotResumableError`` without a
    start.
    """
    config = run.config()
    if config.stage != "rl":
        raise ConfigError(
            f"{run.path} is of stage: {config.stage}, whose steps pass over rows and store no "
            "batches: there is nothing to replay; train it again, and compare the checkpoints"
        )
    trained = _last_trained(run)
    if last > trained:
        what = f"1 to {trained} were trained" if trained else "none was trained yet"
        raise ConfigError(f"{run.path}: step {last} cannot be replayed: of its steps {what}")
    start, start_step, skipped = _find_start(run, config, first)
    log = StepRecords(run.steps)
    fences = [_fence_of(run, log, step) for step in range(start_step + 1, last + 1)]
    _require_one_history(run, fences, start_step)
    inexact: dict[str, None] = {}
    for fence in dict.fromkeys(fences):
        learner = log.learner(fence)
        if learner is None:
            raise ConfigError(
                f"{run.steps}: nothing says how the learner of driver {fence} was set"
            )
        _require_same_settings(run, config, fence, learner["settings"])
        inexact |= dict.fromkeys(_inexact(learner["environment"]))
    return Plan(
        config=config,
        start=start,
        start_step=start_step,
        last=last,
        inexact=tuple(inexact),
        skipped=tuple(skipped),
        log=log,
    )


def read_step(run: RunDirectory, step: int) -> tuple[list[TrainingSample], int]:
    """What a step was trained on, and the fence of the driver that ordered it. Raises
    ``ConfigError`` without a batch that can be read."""
    path = batch_path(run.batches, step)
    try:
        samples, metadata = read_batch(path)
        return samples, int(metadata["fence"])
    except FileNotFoundError:
        raise ConfigError(
            f"{run.path}: step {step} cannot be replayed: its batch {path.name} is not there; "
            "choose steps from a later checkpoint on"
        ) from None
    except UNREADABLE as error:
        raise ConfigError(
            f"{run.path}: step {step} cannot be replayed: its batch {path.name} cannot be read "
            f"({error})"
        ) from None


def _last_trained(run: RunDirectory) -> int:
    query = "SELECT coalesce(max(step), 0) FROM groups WHERE state = 'trained'"
    with reading(run) as ledger:
        return int(ledger.execute(query).fetchone()[0])


def _find_start(run: RunDirectory, config: Config, first: int) -> tuple[Path, int, list[str]]:
    """Where to start for a step: the newest checkpoint before it, or what RL began with."""
    path, manifest, skipped = newest_valid(
        run.checkpoints,
        up_to=first - 1,
        veto=lambda found: taken_back(run.ledger, found.fence, found.step),
    )
    sentences = [why for place, why in skipped if not place.name.startswith(".")]
    if path is not None and manifest is not None:
        return path, manifest.step, sentences
    if config.sft is None:
        return config.model.path, 0, sentences
    path, _, unusable = newest_valid(run.initial)
    if path is None:
        reasons = "; ".join(why for _, why in unusable) or "nothing is there"
        raise NotResumableError(
            f"{run.path}: step {first} cannot be replayed: no checkpoint before it verifies, and "
            f"neither does {run.initial} ({reasons})"
        )
    return path, 0, sentences


def _fence_of(run: RunDirectory, log: StepRecords, step: int) -> int:
    """The driver that trained a step, of which there are a batch and a record."""
    _, fence = read_step(run, step)
    if log.metrics(step, fence) is None:
        why = "there is none" if not run.steps.exists() else f"it has no line of driver {fence}"
        raise ConfigError(
            f"{run.path}: step {step} cannot be replayed: nothing to compare with in "
            f"{run.steps.name}: {why}"
        )
    return fence


def _require_one_history(run: RunDirectory, fences: Sequence[int], start_step: int) -> None:
    """Raise ``ConfigError`` if a batch was left by an older driver than the one before it."""
    for step, (before, fence) in enumerate(pairwise(fences), start_step + 2):
        if fence < before:
            raise ConfigError(
                f"{run.path}: step {step} cannot be replayed: its batch is of driver {fence}, but "
                f"driver {before} trained step {step - 1} anew"
            )


def _require_same_settings(run: RunDirectory, config: Config, fence: int, stored: Row) -> None:
    """Raise ``ConfigError`` that names the keys which have changed. A key that the record does not
    have is younger than the run."""
    now = settings(config)
    changed = [
        f"{key} was {stored[key]!r} and is {now.get(key)!r}"
        for key in stored
        if now.get(key) != stored[key]
    ]
    if changed:
        raise ConfigError(
            f"{run.config_file}: is not the config that driver {fence} trained with: "
            f"{'; '.join(changed)}; put it back to replay"
        )


def _inexact(stored: Mapping[str, str]) -> Iterator[str]:
    """Why a replay here cannot be held to the bits of what was trained there."""
    if stored.get("ranks") != "1":
        yield f"it was trained by {stored.get('ranks')} ranks, and sums in another order"
    here = environment(1)
    for name, value in here.items():
        if name != "ranks" and stored.get(name) != value:
            where = " (host.json has the commit)" if name == CODE else ""
            yield f"{name} was {stored.get(name)} and is {value}{where}"
    if here["device"] != "cpu" and stored.get("device") == here["device"]:
        yield f"kernels of {here['device']} are not held to one order of sums"
