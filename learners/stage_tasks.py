"""From ``stage`` in a config to the task that a learner trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learners.checkpoints import refuse_lower_fence
from learners.deepspeed_engine import DeepspeedEngine
from learners.preference import (
    PreferenceRow,
    PreferenceTask,
    Prices,
    price,
    read_prices,
    share,
    write_prices,
)
from learners.stage import Task
from learners.supervised import SftTask
from learners.value_model import ValueTask
from safeladder.config import Config
from safeladder.errors import ConfigError


def build_task(
    engine: DeepspeedEngine, rows: Sequence[Any], config: Config, fence: int, *, is_resumed: bool
) -> Task:
    """The task of ``config.stage`` over rendered rows. *Collective.*

    ``is_resumed``: the engine's weights are not those that the stage began with. Raises
    ``NotResumableError`` if what the reference said of the pairs is gone then.
    """
    if config.stage == "sft":
        return SftTask(rows)
    if config.stage == "preference" and config.preference is not None:
        reference = _reference(engine, rows, config, fence, is_resumed=is_resumed)
        return PreferenceTask(rows, reference, config.preference)
    if config.stage == "value_model" and config.value_model is not None:
        return ValueTask(rows, config.value_model.clip)
    raise ConfigError(f"stage: {config.stage} passes over no rows")


def _reference(
    engine: DeepspeedEngine,
    rows: Sequence[PreferenceRow],
    config: Config,
    fence: int,
    *,
    is_resumed: bool,
) -> Prices:
    folder = config.run.directory
    if is_resumed:
        own = read_prices(folder, len(rows)) if engine.rank == 0 else None
        return share(engine, own, len(rows))
    prices = price(engine, rows, config.learner.micro_batch_tokens)
    if engine.rank == 0:
        refuse_lower_fence(folder / "checkpoints", fence)
        write_prices(folder, prices)
    return prices
