"""Whether the environment of a run can be built, reads what it needs, and has what to say."""

from __future__ import annotations

from actors.deliberation.building import KEY, build_environment
from curricula.prompts import load_prompts
from safeladder.config import Config
from safeladder.errors import ConfigError, DataError


def check_environment(config: Config) -> None:
    """Build the environment as each engine will, let it read what it reads, and show it every row.

    Raises ``ConfigError``, and ``DataError`` for a row that it can make nothing of.
    """
    settings = config.rollout.environment
    if settings is None:
        return
    if (cap := settings.max_turn_tokens) is not None and cap > config.rollout.max_new_tokens:
        raise ConfigError(
            f"{KEY}.max_turn_tokens is {cap}, but all turns of a conversation together have "
            f"rollout.max_new_tokens: {config.rollout.max_new_tokens}; lower it, or leave it out"
        )
    environment = build_environment(config)
    environment.start()
    try:
        if (fault_of := getattr(environment, "fault", None)) is not None:
            for path in (*config.data.train, *config.data.held_out):
                for prompt in load_prompts([path], config.routes, config.model.system_prompt):
                    if (fault := fault_of(prompt)) is not None:
                        raise DataError(f"{path}: {fault} ({KEY})")
    finally:
        environment.close()
