"""What a run knows of its prompts, for the next one: from the ledger to plain data to a config."""

from __future__ import annotations

import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Any

from cluster.ledger_draws import read_draws
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory, write_json
from curricula.sampler import Sampler
from curricula.training_prompts import needs_sampler, prompt_source
from safeladder.config import Config
from safeladder.errors import ConfigError
from safeladder.ladder_config import KEY, Ladder

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


def write_curriculum_state(run: RunDirectory, file: Path) -> None:
    """``curriculum_state`` as a file. Raises as that does."""
    file.parent.mkdir(exist_ok=True)
    write_json(file, curriculum_state(run))


def starting_from_state(config: Config, file: Path) -> Config:
    """The config of a run that knows what the file says."""
    curriculum = config.curriculum.model_copy(update={"carried": file})
    return config.model_copy(update={"curriculum": curriculum})


def check_carry_over(ladder: Ladder) -> None:
    """Refuse a rung that takes over what no rung knows, or has no use for it. Raises
    ``ConfigError``."""
    for before, rung in pairwise(ladder.rungs):
        for one in (before, rung) if rung.carry_over.curriculum else ():
            if one.config.stage != "rl" or not needs_sampler(one.config):
                raise ConfigError(
                    f"{KEY}.{rung.name}: carry_over.curriculum: the rung {one.name} has no "
                    "curriculum, mixture or weights; give it one, or take the key away"
                )


def require_draws(ledger: sqlite3.Connection, run: RunDirectory) -> None:
    """Raise ``ConfigError`` if nothing was drawn."""
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master")}
    if "draws" not in tables or not ledger.execute("SELECT 1 FROM draws LIMIT 1").fetchone():
        raise ConfigError(
            f"{run.path}: nothing was drawn: its prompts are asked in a plain order, or training "
            "has not begun"
        )
