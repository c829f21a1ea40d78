"""``safeladder verdicts``: which verdicts there were, and which update each of them moved.

Joins three things that a run leaves: ``verdicts.jsonl`` (every verdict that counted, retries and
INVALID ones included), the ledger (what became of the group) and ``batches/`` (the reward that was
trained). Reads only; a run may be going on. Whether the reward follows from the verdicts is the
business of ``replay``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from cluster.history import read_lines
from cluster.run_directory import RunDirectory
from learners.batches import read_batch
from safeladder.errors import ConfigError
from safeladder.records import GroupKey

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
    epoch, slash, ordinal = text.partition("/")
    if not (slash and epoch.isdecimal() and ordinal.isdecimal()):
        raise ConfigError(f"--group {text!r} is no epoch/ordinal, such as 0/12")
    return GroupKey(int(epoch), int(ordinal))


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
    Raises ``ConfigError`` for a principle that the run never had.
    """
    fates = read_fates(run)
    rewards: dict[int, dict[str, float]] = {}
    if principle is not None and principle not in (known := run.config().principles):
        raise ConfigError(f"--principle {principle}: this run has {', '.join(sorted(known))}")
    for verdict in read_lines(run.verdicts):
        key = group_of(verdict)
        fate = None if key is None else fates.get(key)
        if fate is None or group not in (None, key):
            continue
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


def read_fates(run: RunDirectory) -> dict[GroupKey, Fate]:
    """What became of every group. Raises ``ConfigError`` without a ledger."""
    if not run.ledger.is_file():
        raise ConfigError(f"{run.path} has no ledger: training has not begun")
    uri = f"file:{run.ledger}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as connection:
        rows = connection.execute(_STATES).fetchall()
    return {GroupKey(row[0], row[1]): Fate(*row[2:]) for row in rows}


def _rewards(run: RunDirectory, step: int) -> dict[str, float]:
    path = run.batches / f"step-{step}.safetensors"
    if not path.is_file():
        return {}
    return {sample.sample_id: sample.reward for sample in read_batch(path)[0]}
