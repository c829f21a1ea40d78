"""What a run knows of its prompts, for the next one: from the ledger to plain data to a config."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from cluster.ledger_draws import read_draws
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory, write_json
from curricula.sampler import Sampler
from curricula.training_prompts import prompt_source
from safeladder.config import Config
from safeladder.errors import ConfigError

LAST_STEP = "SELECT coalesce(max(step), 0) FROM groups WHERE state = 'trained'"


def curriculum_state(run: RunDirectory) -> dict[str, Any]:
    """What the run knows of its prompts at its last step, as plain JSON data: what
    ``curriculum.carried`` of another run reads. Raises ``ConfigError`` for a run without a sampler,
    ``DataError`` if its data cannot be read any more."""
    source = prompt_source(run.config())
    if not isinstance(source, Sampler):
        raise ConfigError(f"{run.path}: has no curriculum, mixture or weights; its order is plain")
    with reading(run) as ledger:
        require_draws(ledger, run)
        source.restore(read_draws(ledger, ledger.execute(LAST_STEP).fetchone()[0]))
    return source.dump()


def carry_curriculum(before: RunDirectory, file: Path, config: Config) -> Config:
    """Write what a run knows to a file, and return ``config`` starting from it. Raises as
    ``curriculum_state``."""
    write_json(file, curriculum_state(before))
    curriculum = config.curriculum.model_copy(update={"carried": file})
    return config.model_copy(update={"curriculum": curriculum})


def require_draws(ledger: sqlite3.Connection, run: RunDirectory) -> None:
    """Raise ``ConfigError`` if nothing was drawn."""
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master")}
    if "draws" not in tables or not ledger.execute("SELECT 1 FROM draws LIMIT 1").fetchone():
        raise ConfigError(
            f"{run.path}: nothing was drawn: its prompts are asked in a plain order, or training "
            "has not begun"
        )
