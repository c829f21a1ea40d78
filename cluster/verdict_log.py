"""``safeladder verdicts``: which verdicts there were, and which update each of them moved.

Joins three things that a run leaves: ``verdicts.jsonl`` (every verdict that counted, retries and
INVALID ones included), the ledger (what became of the group) and ``batches/`` (the reward that was
trained). Reads only; a run may be going on. Whether the reward follows from the verdicts is the
business of ``replay``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.history import numbered_lines
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory
from learners.batches import UNREADABLE, batch_path, read_batch
from safeladder.errors import ConfigError, DataError
from safeladder.records import GroupKey

_TEXTS = ("sample_id", "principle", "verifier", "verifier_version", "status")
_TEXTS_OR_NULL = ("label", "evidence", "cause")
_GROUP = re.compile(r"(\d{1,18})/(\d{1,18})", re.ASCII)
_STATES = "SELECT epoch, ordinal, state, step, reason, detail, attempt FROM groups"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a group."""

    state: str
    step: int | None
    """Step that trained it, or was about to."""
    reason: str | None
    detail: str
    attempt: int
    """In force at the end."""


@dataclass(frozen=True, slots=True)
class LoggedVerdict:
    """One line of the log with what it led to."""

    verdict: Mapping[str, Any]
    """The fields of ``records.Verdict``."""
    fate: Fate
    reward: float | None
    """Reward with which the sample was trained; None if it was not, or in another attempt."""


def parse_group(text: str) -> GroupKey:
    """A group's ``epoch/ordinal``. Raises ``ConfigError``.

    >>> parse_group("0/12")
    GroupKey(epoch=0, ordinal=12)
    """
    found = _GROUP.fullmatch(text)
    if found is None:
        raise ConfigError(f"--group {text!r} is no epoch/ordinal, such as 0/12")
    return GroupKey(int(found[1]), int(found[2]))


def read_verdicts(
    run: RunDirectory,
    *,
    group: GroupKey | None = None,
    step: int | None = None,
    principle: str | None = None,
    status: str | None = None,
) -> Iterator[LoggedVerdict]:
    """The verdicts of a run in the order they came, narrowed by what is given.

    Verdicts of an attempt that was given up are there too; the fate is that of the newest attempt.
    Raises ``ConfigError`` for a principle, group or step that the run never had, and for a file
    that is damaged, naming its line.
    """
    fates = read_fates(run)
    require_group(run, fates, group)
    require_step(run, fates, step)
    rewards: dict[int, dict[str, float]] = {}
    if principle is not None and principle not in (known := run.config().principles):
        raise ConfigError(f"--principle {principle}: this run has {', '.join(sorted(known))}")
    for number, verdict in numbered_lines(run.verdicts, is_strict=True):
        key = group_of(verdict)
        fate = None if key is None else fates.get(key)
        if fate is None or group not in (None, key):
            continue
        _require_whole(verdict, f"{run.verdicts}:{number}")
        if step is not None and fate.step != step:
            continue
        if principle not in (None, verdict["principle"]) or status not in (None, verdict["status"]):
            continue
        if fate.step is not None and fate.step not in rewards:
            rewards[fate.step] = _rewards(run, fate.step)
        reward = None
        if fate.step is not None and verdict.get("attempt", fate.attempt) == fate.attempt:
            reward = rewards[fate.step].get(verdict["sample_id"])
        yield LoggedVerdict(verdict, fate, reward)


def group_of(verdict: Mapping[str, Any]) -> GroupKey | None:
    """The group of a verdict; None for a line of no group: an evaluation's, the mark of a panel."""
    try:
        epoch, ordinal, _ = map(int, str(verdict.get("sample_id")).split("/"))
    except ValueError:
        return None
    return GroupKey(epoch, ordinal)


def _require_whole(verdict: Mapping[str, Any], place: str) -> None:
    """Raises ``DataError`` for a line about a group without a column of a verdict."""
    faults = [name for name in _TEXTS if not isinstance(verdict.get(name), str)]
    faults += [n for n in _TEXTS_OR_NULL if not isinstance(verdict.get(n, 0), str | None)]
    if not isinstance(verdict.get("score", ""), int | float | None):
        faults.append("score")
    if faults:
        raise DataError(
            f"{place}: column {faults[0]} is missing or is none: the file is damaged; restore it "
            "or remove the line"
        )


def require_group(
    run: RunDirectory, fates: Mapping[GroupKey, Fate], group: GroupKey | None
) -> None:
    """Raises ``ConfigError`` for a group that the run never had."""
    if group is not None and group not in fates:
        known = f"its groups are {min(fates)} to {max(fates)}" if fates else "it has none yet"
        raise ConfigError(f"--group {group}: no such group in {run.path}; {known}")


def require_step(run: RunDirectory, fates: Mapping[GroupKey, Fate], step: int | None) -> None:
    """Raises ``ConfigError`` for a step that no group was trained in."""
    if step is not None and all(fate.step != step for fate in fates.values()):
        newest = max((fate.step for fate in fates.values() if fate.step is not None), default=0)
        known = f"its steps go up to {newest}" if newest else "it has trained none yet"
        raise ConfigError(f"--step {step}: no such step in {run.path}; {known}")


def read_fates(run: RunDirectory) -> dict[GroupKey, Fate]:
    """What became of every group. Raises ``ConfigError`` without a ledger that can be read."""
    with reading(run) as ledger:
        rows = ledger.execute(_STATES).fetchall()
    return {GroupKey(row[0], row[1]): Fate(*row[2:]) for row in rows}


def _rewards(run: RunDirectory, step: int) -> dict[str, float]:
    path = batch_path(run.batches, step)
    if not path.is_file():
        return {}
    try:
        return {sample.sample_id: sample.reward for sample in read_batch(path)[0]}
    except UNREADABLE as error:
        raise DataError(
            f"{path}: cannot be read as a step's batch ({error}); restore the file, or ask for "
            "other groups"
        ) from None
