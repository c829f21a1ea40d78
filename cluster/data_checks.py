"""Every row of every data file of a run, read before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curricula.demonstrations import load_demonstrations
from curricula.prompts import load_prompts, placed_prompts
from safeladder.config import Config, SourceConfig
from safeladder.errors import ConfigError, DataError
from safeladder.records import Prompt


def check_data(config: Config) -> list[Prompt]:
    """Read every data file; returns the training prompts, at least one.

    Raises ``ConfigError`` for a key that names no file, ``DataError`` for a row.
    """
    if not config.data.train:
        raise ConfigError("data.train names no file; list the prompt files to train on")
    prompts = _text_prompts(config, config.data.train)
    _text_prompts(config, config.data.held_out)
    if config.sft is not None:
        if not config.sft.data:
            raise ConfigError("sft.data names no file; list some, or set `sft: null`")
        load_demonstrations(config.sft.data)
    return prompts


def _text_prompts(config: Config, sources: Sequence[Path | SourceConfig]) -> list[Prompt]:
    """All prompts, none with images: no engine renders them yet, so each would fail later."""
    how = config.routes, config.model.system_prompt
    prompts = load_prompts(sources, *how)
    if any(prompt.images for prompt in prompts):
        rows = (row for source in sources for row in placed_prompts(source, *how))
        place = next(place for place, prompt in rows if prompt.images)
        raise DataError(
            f"{place}: column images: no rollout engine renders images yet; remove the row, or its "
            "images if the question stands without them"
        )
    return prompts
