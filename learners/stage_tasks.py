"""From ``stage`` in a config to the task that a learner trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learners.deepspeed_engine import DeepspeedEngine
from learners.stage import Task
from learners.supervised import SftTask
from safeladder.config import Config
from safeladder.errors import ConfigError


def build_task(
    engine: DeepspeedEngine, rows: Sequence[Any], config: Config, fence: int, *, is_resumed: bool
) -> Task:
    """The task of ``config.stage`` over rendered rows. *Collective.*

    ``is_resumed``: the engine's weights are not those that the stage began with.
    """
    if config.stage == "sft":
        return SftTask(rows)
    raise ConfigError(f"stage: {config.stage} passes over no rows")
