"""Constraint weights from a finished run into the config of the rung after it."""

from __future__ import annotations

import json
from itertools import pairwise

from cluster.ledger import Ledger
from cluster.run_directory import RunDirectory
from safeladder.config import Config
from safeladder.errors import ConfigError
from safeladder.ladder_config import KEY, Ladder


def check_constraints(ladder: Ladder) -> None:
    """Refuse a rung that takes over weights of constraints of which the one before has none.
    Raises ``ConfigError``."""
    for before, rung in pairwise(ladder.rungs):
        if rung.carry_over.constraint_weights and not (
            before.config.constraints.keys() & rung.config.constraints.keys()
        ):
            raise ConfigError(
                f"{KEY}.{rung.name}: carry_over.constraint_weights: it has no constraint in common "
                f"with the rung {before.name}; give both one of the same name, or take the key away"
            )


def with_last_weights(config: Config, before: RunDirectory) -> Config:
    """Each constraint that both runs have starts where the other one ended, within its limits."""
    ends = last_weights(before)
    constraints = {
        name: constraint.model_copy(
            update={"start": min(max(ends[name], constraint.lowest), constraint.max)}
        )
        if name in ends
        else constraint
        for name, constraint in config.constraints.items()
    }
    return config.model_copy(update={"constraints": constraints})


def last_weights(run: RunDirectory) -> dict[str, float]:
    """Constraint → lambda at the last step; empty if the run had none."""
    if not run.ledger.exists():
        return {}
    with Ledger.open(run.ledger, run.config().run.name) as ledger:
        stored = ledger.snapshot().constraints
    return {name: state["weight"] for name, state in json.loads(stored or "{}").items()}
