"""What can be known to be wrong with a ladder before its first rung starts.

Every rung is checked as a run is, with the base model in the place of the weights that it will
start from, which have its shape. A problem names its rung.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from cluster.carry_over import check_constraints
from cluster.checks import preflight
from cluster.curriculum_state import check_carry_over
from cluster.data_checks import check_data
from cluster.model_folder import read_model_folder
from cluster.modelless_checks import NOT_CHECKED, check_without_model, stand_in
from cluster.resource_plan import resource_plan
from curricula.demonstrations import load_demonstrations
from safeladder.config import Config
from safeladder.config_loading import config_hash
from safeladder.errors import ConfigError, SafeladderError
from safeladder.ladder_config import KEY, Ladder, Rung
from safeladder.paths import read_bytes

THINK = "<think>"
THINK_FORMAT = "rewards.format:ThinkFormat"
CheckRun = Callable[[Config], None]


def check_rungs(ladder: Ladder, check_run: CheckRun = preflight) -> None:
    """Check all rungs, the first problem first. Raises what ``preflight`` raises, with the name of
    the rung."""
    check_carry_over(ladder)
    check_constraints(ladder)
    for rung in ladder.rungs:
        with _named(rung):
            check_run(rung.config)
            check_labels(rung.config)
    check_think_tags(ladder)


def check_labels(config: Config) -> None:
    """Refuse a route that no training row has: nobody would be trained by it. Raises
    ``ConfigError``."""
    if config.stage != "rl":
        return
    rows = Counter(prompt.route for prompt in check_data(config))
    for route in config.routes:
        if not rows[route]:
            raise ConfigError(
                f"routes.{route}: data.train has no row with this label (it has "
                f"{', '.join(sorted(rows)) or 'none'}); add rows or take the route away"
            )


def check_command(ladder: Ladder, billions: float | None = None) -> int:
    """What ``check`` does with a ladder: check and plan every rung; returns the exit code.

    With ``billions`` of parameters to plan for, the model need not be there.
    """
    from cluster.check_tables import show_plan

    check_rungs(ladder, preflight if billions is None else check_without_model)
    for rung in ladder.rungs:
        config = rung.config
        path = config.model.path
        model = read_model_folder(path) if billions is None else stand_in(path, billions)
        typer.echo(f"rung {rung.folder}: config {config_hash(config)[:12]}")
        show_plan(resource_plan(config, model))
    ready = "ready to climb" if billions is None else "sound, as far as it was checked"
    typer.echo(f"{len(ladder.rungs)} rungs: {ready}")
    if billions is not None:
        typer.echo(NOT_CHECKED)
    return 0


def check_think_tags(ladder: Ladder) -> None:
    """Refuse a rung whose format principle asks for ``<think>`` if nothing tells the model of it:
    no sample would ever be well-formed. Raises ``ConfigError`` with the name of the rung."""
    is_taught = False
    for rung in ladder.rungs:
        config = rung.config
        if config.sft is not None:
            shown = load_demonstrations(config.sft.data)
            is_taught = is_taught or any(THINK in row.response for row in shown)
        asks = [name for name, p in config.principles.items() if p.verifier == THINK_FORMAT]
        if config.stage != "rl" or not asks or is_taught:
            continue
        told = (config.model.system_prompt, config.model.chat_template, _own_template(config))
        if not any(THINK in (text or "") for text in told):
            raise ConfigError(
                f"{KEY}.{rung.name}: principles.{asks[0]} wants {THINK} … </think>, but neither "
                "the chat template nor model.system_prompt has it, and no rung before shows it; "
                "put it into one of them, or demonstrations with it into an sft rung"
            )


def _own_template(config: Config) -> str:
    """What the model's folder says of its chat template; empty if it is not there."""
    texts = []
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        try:
            texts.append(read_bytes(config.model.path / name).decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(texts)


@contextmanager
def _named(rung: Rung) -> Iterator[None]:
    try:
        yield
    except SafeladderError as error:
        text = f"{KEY}.{rung.name}: {error}"
        error.args = (text, *error.args[1:])
        raise
