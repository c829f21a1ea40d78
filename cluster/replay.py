"""``safeladder verdicts --replay``: every trained reward computed again, from files alone.

::

    ledger          which attempt of a group was trained, in which step
    verdicts.jsonl  the verdicts of that attempt, and the weights and rule of their panel
    config.yaml     how many siblings a group has
    batches/        the reward that was trained, to hold the result against

The reward is made by ``scoring.group_rewards``, as in training. No group that the ledger calls
trained is passed over: it is replayed, or there is a reason why it cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.history import read_lines
from cluster.run_directory import RunDirectory
from cluster.scoring import group_rewards
from cluster.transitions import GroupState
from cluster.verdict_log import Fate, group_of, read_fates, require_group, require_step
from learners.batches import UNREADABLE, batch_path, read_batch
from safeladder.config import RewardConfig
from safeladder.constraint_weights import weighed
from safeladder.errors import ConfigError
from safeladder.records import GroupKey, InvalidCause, Verdict, VerdictStatus

TOLERANCE = 1e-6
"""Largest difference of two rewards that agree."""
PLACE = ("attempt", "call", "route", "fence", "generation")
"""What a line of the log needs beside its verdict."""

_FIELDS = frozenset(Verdict.__struct_fields__)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReplayedSample:
    """One sample whose reward was computed again."""

    sample_id: str
    step: int
    stored: float | None
    """Reward in the batch; None if it was left out."""
    recomputed: float | None
    """None if its verdicts say that it is to be left out."""
    weights: Mapping[str, float]
    verdicts: Mapping[str, Verdict]
    """By principle."""

    @property
    def agrees(self) -> bool:
        """Whether training did what the verdicts say."""
        if self.stored is None or self.recomputed is None:
            return self.stored is self.recomputed
        return abs(self.stored - self.recomputed) <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Gap:
    """A group that cannot be replayed."""

    key: GroupKey
    step: int
    samples: tuple[str, ...]
    """Those that the batch holds."""
    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a run."""

    groups: int
    """Groups whose rewards were computed again."""
    samples: list[ReplayedSample]
    """Without those that were rightly left out."""
    gaps: list[Gap]

    @property
    def disagreements(self) -> list[ReplayedSample]:
        """Samples that were trained with another reward than their verdicts give."""
        return [sample for sample in self.samples if not sample.agrees]


class _CannotReplayError(Exception):
    """The message is the reason."""


def replay(run: RunDirectory, *, group: GroupKey | None = None, step: int | None = None) -> Replay:
    """Compute every trained reward again, or those of a group or step. Reads only.

    Raises ``ConfigError`` if nothing was trained, or for a group or step that the run never had.
    """
    fates = read_fates(run)
    require_group(run, fates, group)
    require_step(run, fates, step)
    trained = {
        key: fate
        for key, fate in fates.items()
        if fate.state == GroupState.TRAINED and group in (None, key) and step in (None, fate.step)
    }
    if not trained:
        raise ConfigError(f"{run.path}: nothing was trained that could be replayed")
    log = _Log(run, trained)
    size = run.config().rollout.group_size
    samples: list[ReplayedSample] = []
    gaps: list[Gap] = []
    for number in sorted({fate.step for fate in trained.values() if fate.step is not None}):
        keys = sorted(key for key, fate in trained.items() if fate.step == number)
        try:
            batch = _read_rewards(run, number)
        except _CannotReplayError as error:
            gaps += [Gap(key, number, (), str(error)) for key in keys]
            continue
        for key in keys:
            stored = batch.get(key, {})
            try:
                replayed = _replay_group(log, key, trained[key], size, stored)
            except _CannotReplayError as error:
                gaps.append(Gap(key, number, tuple(stored), str(error)))
            else:
                samples += [one for one in replayed if (one.stored, one.recomputed) != (None, None)]
        reason = f"the ledger does not say that step {number} trained it"
        gaps += [
            Gap(key, number, tuple(batch[key]), reason)
            for key in batch
            if key not in trained and group in (None, key)
        ]
    return Replay(len(trained) - sum(gap.key in trained for gap in gaps), samples, gaps)


class _Log:
    """``verdicts.jsonl``: the panels, and the lines about trained groups."""

    def __init__(self, run: RunDirectory, trained: Mapping[GroupKey, Fate]) -> None:
        self._panels: dict[str, Row] = {}
        self._rows: dict[GroupKey, list[Row]] = {}
        for row in read_lines(run.verdicts):
            if row.get("event") == "principles":
                self._panels[f"{row.get('fence')}.{row.get('generation')}"] = row
            elif (key := group_of(row)) is not None and key in trained:
                self._rows.setdefault(key, []).append(row)

    def rows(self, key: GroupKey, attempt: int) -> list[Row]:
        """The lines about an attempt, by call."""
        rows = self._rows.get(key, [])
        if any(row.get(name) is None for row in rows for name in PLACE):
            raise _CannotReplayError(
                "verdicts.jsonl does not say which attempt, route and panel its verdicts belong to"
            )
        of_attempt = [row for row in rows if row["attempt"] == attempt]
        if not of_attempt:
            raise _CannotReplayError(
                f"verdicts.jsonl holds no verdict of attempt {attempt}, which was trained"
            )
        return sorted(of_attempt, key=lambda row: int(row["call"]))

    def panel(self, rows: list[Row]) -> tuple[dict[str, float], RewardConfig]:
        """Weights and rule that were in force for these lines, under the constraint weights that
        they name."""
        places = {(row["fence"], row["generation"], row["route"]) for row in rows}
        if len(places) > 1:
            raise _CannotReplayError("its verdicts belong to more than one panel")
        ((fence, generation, route),) = places
        mark = self._panels.get(f"{fence}.{generation}", {})
        if route not in mark.get("routes", {}) or "reward" not in mark:
            raise _CannotReplayError(
                f"verdicts.jsonl does not say what route {route!r} weighed in generation "
                f"{generation} of driver {fence}"
            )
        factors = [row.get("factors", {}) for row in rows]
        if any(one != factors[0] for one in factors):
            raise _CannotReplayError("its verdicts name more than one set of constraint weights")
        weights = weighed(mark["routes"][route], factors[0])
        return weights, RewardConfig.model_validate(mark["reward"])


def _replay_group(
    log: _Log, key: GroupKey, fate: Fate, size: int, stored: Mapping[str, float]
) -> list[ReplayedSample]:
    assert fate.step is not None, f"{key} was trained in no step"
    ids = [f"{key}/{index}" for index in range(size)]
    if strangers := stored.keys() - set(ids):
        raise _CannotReplayError(f"a group of {size} has no sample {min(strangers)}")
    try:
        rows = log.rows(key, fate.attempt)
        weights, rule = log.panel(rows)
        said = {(row["sample_id"], row["principle"]): _verdict(row) for row in rows}
        asked = [(sample, name) for sample in ids for name in weights]
        if lacking := [
            f"{name} on {sample}" for sample, name in asked if (sample, name) not in said
        ]:
            raise _CannotReplayError(f"verdicts.jsonl has no verdict of {lacking[0]}")
        siblings = [{name: said[sample, name] for name in weights} for sample in ids]
        rewards = group_rewards(weights, siblings, rule)
    except (KeyError, TypeError, ValueError) as error:
        raise _CannotReplayError(f"verdicts.jsonl is damaged: {error}") from error
    return [
        ReplayedSample(sample, fate.step, stored.get(sample), reward, weights, verdicts)
        for sample, reward, verdicts in zip(ids, rewards, siblings, strict=True)
    ]


def _verdict(row: Row) -> Verdict:
    fields = {name: row[name] for name in _FIELDS & row.keys()}
    cause = row.get("cause")
    fields["status"] = VerdictStatus(row["status"])
    fields["cause"] = None if cause is None else InvalidCause(cause)
    return Verdict(**fields)


def _read_rewards(run: RunDirectory, step: int) -> dict[GroupKey, dict[str, float]]:
    """Group → sample → reward, as the step was trained."""
    path = batch_path(run.batches, step)
    found: dict[GroupKey, dict[str, float]] = {}
    try:
        for sample in read_batch(path)[0]:
            rewards = found.setdefault(sample.group, {})
            if sample.sample_id in rewards:
                raise _CannotReplayError(f"{path.name} holds {sample.sample_id} twice")
            rewards[sample.sample_id] = sample.reward
    except FileNotFoundError:
        raise _CannotReplayError(f"{path.name} is not there") from None
    except UNREADABLE as error:
        raise _CannotReplayError(f"{path.name} cannot be read ({error})") from error
    return found


def by_reason(gaps: list[Gap]) -> Iterator[tuple[str, list[Gap]]]:
    """The gaps under each reason, in order of first appearance."""
    reasons: dict[str, list[Gap]] = {}
    for gap in gaps:
        reasons.setdefault(gap.reason, []).append(gap)
    yield from reasons.items()
