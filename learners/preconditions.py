"""Settings that no learner can work with, known before one is started. Imports nothing heavy."""

from __future__ import annotations

from safeladder.config import Config
from safeladder.errors import ConfigError


def require_trainable(config: Config) -> None:
    """Raise ``ConfigError``, which names the keys, unless a learner can train with ``config``."""
    learner, context = config.learner, config.rollout.max_model_tokens
    if context > learner.micro_batch_tokens:
        raise ConfigError(
            f"learner.micro_batch_tokens is {learner.micro_batch_tokens}, but one sample may "
            f"have {context} tokens ({config.rollout.context_keys})"
        )
    if config.model.dtype != "float32" and learner.zero_stage == 0:
        raise ConfigError(
            "learner.zero_stage 0 keeps no float32 masters: use 1, 2 or 3 with "
            f"model.dtype {config.model.dtype}"
        )
