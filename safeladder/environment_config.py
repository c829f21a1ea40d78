"""``rollout.environment``: who answers the model's turns, and within which limits."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class EnvironmentConfig(Section):
    """Conversations of several turns instead of single answers."""

    kind: Literal["search", "scripted"] | None = None
    """``search``: think, search, read and answer over a local corpus; ``scripted``: further user
    turns from a column of the data."""
    path: str | None = None
    """``module:Class`` of an environment of your own, or of an agent written for OpenRLHF, instead
    of ``kind``."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of the environment."""
    max_turns: PositiveInt = 8
    """Turns of the model in one conversation."""
    max_turn_tokens: PositiveInt | None = None
    """Sampled tokens of one turn; null leaves it to ``rollout.max_new_tokens``, which all turns of
    a conversation share."""
    reply_tokens: PositiveInt = 1024
    """Tokens of everything that the environment says in one conversation, control tokens included.
    The context holds max_prompt_tokens + max_new_tokens + reply_tokens."""
    timeout_s: PositiveFloat = 30.0
    """An environment that takes longer for one reply has failed the sample."""
    max_retries: NonNegativeInt = 1
    """Further tries of a reply that failed, if the environment can repeat it."""
    concurrency: PositiveInt = 16
    """Replies that one engine's environment makes at the same time."""

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.kind is None) == (self.path is None):
            raise ValueError("name either a `kind` or a `path: module:Class`")
        return self
