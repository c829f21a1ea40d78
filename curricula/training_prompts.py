"""From the config of a run to what it asks: the plain order, or a sampler if anything in the config
needs one. Without a mixture, weights or a schedule the order is a pure function of a place, as it
has always been."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

from curricula.buckets import PromptError
from curricula.prompts import PromptOrder, load_sources, placed_prompts
from curricula.sampler import Sampler
from safeladder.config import Config
from safeladder.data_config import SourceConfig
from safeladder.errors import ConfigError, DataError
from safeladder.paths import PathError, read_bytes


def prompt_source(config: Config) -> PromptOrder | Sampler:
    """What a run asks. Raises ``ConfigError`` or ``DataError``."""
    data, curriculum, seed = config.data, config.curriculum, config.run.seed
    how = config.routes, config.model.system_prompt
    loaded = load_sources(data.train, *how)
    prompts = list(chain.from_iterable(loaded))
    if not needs_sampler(config):
        return PromptOrder(prompts, seed, data.shuffle)
    weights = [_weight(source) for source in data.train]
    counts = zip(weights, loaded, strict=True)
    try:
        sampler = Sampler(
            prompts,
            curriculum,
            seed=seed,
            shuffle=data.shuffle,
            mix=data.mix,
            weights=[weight for weight, rows in counts for _ in rows],
        )
    except PromptError as error:
        places = chain.from_iterable(placed_prompts(source, *how) for source in data.train)
        place, _ = next(islice(places, error.row, None))
        raise DataError(f"{place}: {error}") from None
    if curriculum.carried is not None:
        sampler.load(_carried(curriculum.carried))
    return sampler


def needs_sampler(config: Config) -> bool:
    """Whether what is asked depends on more than the place."""
    has_weights = any(_weight(source) != 1 for source in config.data.train)
    return has_weights or bool(config.data.mix) or config.curriculum.schedule != "none"


def _weight(source: Path | SourceConfig) -> float:
    return source.weight if isinstance(source, SourceConfig) else 1.0


def _carried(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; check `curriculum.carried`") from None
    except (PathError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check `curriculum.carried`") from None
