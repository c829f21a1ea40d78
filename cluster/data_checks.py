"""Every row of every data file of a run, read before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from cluster.image_checks import check_images, has_mark
from curricula.demonstrations import load_demonstrations
from curricula.prompts import load_prompts, placed_prompts
from curricula.sampler import Sampler
from curricula.training_prompts import needs_sampler, prompt_source
from safeladder.config import Config, SourceConfig
from safeladder.errors import ConfigError
from safeladder.records import Prompt
from safeladder.stage_config import SftFilters


def check_data(config: Config) -> list[Prompt]:
    """Read every data file; returns the training prompts, at least one, or the held-out ones of a
    stage that trains none.

    Raises ``ConfigError`` for a key that names no file, ``DataError`` for a row.
    """
    if config.stage != "rl":
        from cluster.stage_rows import load_stage_rows  # it loads the tokenizer: seconds

        load_stage_rows(config, ask=False)
        return _prompts(config, config.data.held_out)
    if not config.data.train:
        raise ConfigError("data.train names no file; list the prompt files to train on")
    prompts = _prompts(config, config.data.train)
    if needs_sampler(config):
        prompt_source(config)
    _prompts(config, config.data.held_out)
    for probe in config.probes.sets.values():
        _prompts(config, probe.data)
    if config.sft is not None:
        if not config.sft.data:
            raise ConfigError("sft.data names no file; list some, or set `sft: null`")
        load_demonstrations(config.sft.data)
        if config.sft.filters != SftFilters():
            from cluster.supervised import accepted_rows

            accepted_rows(config, ask=False)
    return prompts


def stage_lines(config: Config) -> Iterator[str]:
    """What a run would say of the rows of its stage, of its supervised rung, or of what its sampler
    has to ask. Principles are asked if ``sft.filters.verify`` is set."""
    if config.stage != "rl":
        from cluster.stage_rows import load_stage_rows

        yield from load_stage_rows(config).lines
    elif config.sft is not None:
        from cluster.supervised import accepted_rows

        _, acceptance = accepted_rows(config)
        yield from acceptance.lines() if acceptance else ()
    if config.stage == "rl" and needs_sampler(config):
        source = prompt_source(config)
        yield from source.lines() if isinstance(source, Sampler) else ()


def _prompts(config: Config, sources: Sequence[Path | SourceConfig]) -> list[Prompt]:
    """All prompts, with every image looked at."""
    how = config.routes, config.model.system_prompt
    prompts = load_prompts(sources, *how)
    if any(prompt.images or has_mark(prompt) for prompt in prompts):
        check_images(config, chain.from_iterable(placed_prompts(s, *how) for s in sources))
    return prompts
