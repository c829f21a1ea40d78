"""The rows of a stage, read, checked and rendered to token ids: all that a learner is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cluster.supervised import accepted_rows
from learners.row_plan import RowPlan
from safeladder.config import Config
from safeladder.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class StageRows:
    """Rows in file order, those for validation included."""

    rows: Sequence[Any]
    """Of the type that the stage's task takes."""
    summary: Mapping[str, Any]
    """What ``summary.json`` says of them."""
    lines: Sequence[str]
    """What a person is told of them."""


def load_stage_rows(config: Config, folder: Path | None = None, *, ask: bool = True) -> StageRows:
    """Everything that ``config.stage`` trains on. In ``folder``, that of the run, decisions about
    rows are kept; without ``ask`` no principle is asked about them.

    Raises ``ConfigError`` for a section without files or with too few rows, ``DataError`` for a
    row.
    """
    assert config.rows is not None, "the run has no stage that passes over rows"
    if not config.rows.data:
        raise ConfigError(f"{config.stage}.data names no file; list the files to train on")
    found = _LOADERS[config.stage](config, folder, ask)
    plan = plan_of(config, len(found.rows))
    if plan.steps_per_epoch < 1:
        raise DataError(f"{config.stage}.data: no row is left to train; add some")
    held = f", {len(plan.validation)} of them for validation" if plan.validation else ""
    told = f"{len(found.rows)} rows{held}, {plan.num_steps} steps"
    return StageRows(found.rows, found.summary, [*found.lines, told])


def plan_of(config: Config, num_rows: int) -> RowPlan:
    """Which rows each step of the run trains."""
    assert config.rows is not None, "the run has no stage that passes over rows"
    return RowPlan(num_rows, config.rows, config.run.seed, config.run.steps)


def digest_of(config: Config, rows: Sequence[Any]) -> str:
    """Hex SHA-256 of all that decides which rows a step trains: a resumed run must have the same.
    Epochs may be added."""
    assert config.rows is not None, "the run has no stage that passes over rows"
    settings = (config.stage, config.run.seed, config.rows.batch_size, config.rows.validation_share)
    digest = hashlib.sha256(json.dumps(settings).encode())
    for row in rows:
        for column in fields(row):
            value = getattr(row, column.name)
            if isinstance(value, np.ndarray):
                digest.update(f"{column.name}{value.shape}".encode())
                digest.update(value.tobytes())
            else:
                digest.update(f"{column.name}{value!r}".encode())
    return digest.hexdigest()


def _supervised(config: Config, folder: Path | None, ask: bool) -> StageRows:
    rows, acceptance = accepted_rows(config, folder, ask=ask)
    assert acceptance is not None, "the section sft is there"
    return StageRows(rows, {"acceptance": acceptance.summary()}, list(acceptance.lines()))


_LOADERS = {"sft": _supervised}
