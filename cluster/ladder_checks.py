"""What can be known to be wrong with a ladder before its first rung starts.

Every rung is checked as a run is, with the base model in the place of the weights that it will
start from, which have its shape. A problem names its rung.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from cluster.checks import preflight
from cluster.data_checks import check_data
from cluster.model_folder import read_model_folder
from cluster.resource_plan import resource_plan
from safeladder.config import Config
from safeladder.config_loading import config_hash
from safeladder.errors import ConfigError, SafeladderError
from safeladder.ladder_config import KEY, Ladder, Rung

CheckRun = Callable[[Config], None]


def check_rungs(ladder: Ladder, check_run: CheckRun = preflight) -> None:
    """Check all rungs, the first problem first. Raises what ``preflight`` raises, with the name of
    the rung."""
    for rung in ladder.rungs:
        with _named(rung):
            check_run(rung.config)
            check_labels(rung.config)


def check_labels(config: Config) -> None:
    """Refuse a route that no training row has: nobody would be trained by it. Raises
    ``ConfigError``."""
    rows = Counter(prompt.route for prompt in check_data(config))
    for route in config.routes:
        if not rows[route]:
            raise ConfigError(
                f"routes.{route}: data.train has no row with this label (it has "
                f"{', '.join(sorted(rows)) or 'none'}); add rows or take the route away"
            )


def check_command(ladder: Ladder) -> int:
    """What ``check`` does with a ladder: check and plan every rung; returns the exit code."""
    from cluster.check_tables import show_plan

    check_rungs(ladder)
    for rung in ladder.rungs:
        config = rung.config
        typer.echo(f"rung {rung.folder}: config {config_hash(config)[:12]}")
        show_plan(resource_plan(config, read_model_folder(config.model.path)))
    typer.echo(f"{len(ladder.rungs)} rungs: ready to climb")
    return 0


@contextmanager
def _named(rung: Rung) -> Iterator[None]:
    try:
        yield
    except SafeladderError as error:
        text = f"{KEY}.{rung.name}: {error}"
        error.args = (text, *error.args[1:])
        raise
