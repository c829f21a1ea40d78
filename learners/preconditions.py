"""Settings that no learner can work with, known before one is started. Imports nothing heavy."""

from __future__ import annotations

from safeladder.config import Config
from safeladder.errors import ConfigError


def require_trainable(config: Config) -> None:
    """Raise ``ConfigError``, which names the keys, unless a learner can train with ``config``."""
    learner, context = config.learner, config.rollout.max_model_tokens
    if config.stage == "rl" and context > learner.micro_batch_tokens:
        raise ConfigError(
            f"learner.micro_batch_tokens is {learner.micro_batch_tokens}, but one sample may "
            f"have {context} tokens ({config.rollout.context_keys})"
        )
    if config.model.dtype != "float32" and learner.zero_stage == 0:
        raise ConfigError(
            "learner.zero_stage 0 keeps no float32 masters: use 1, 2 or 3 with "
            f"model.dtype {config.model.dtype}"
        )
    _require_streams(config)


def _require_streams(config: Config) -> None:
    """Refuse an objective that would miss something of its samples in the first step."""
    objective, limit = config.learner.objective, config.rollout.max_new_tokens
    if objective.kl_in == "return" and config.reference.kl_coefficient == 0:
        raise ConfigError(
            "learner.objective.kl_in: return needs log-probs of the reference, and "
            "reference.kl_coefficient: 0 asks for none; set it above 0, or kl_in: loss"
        )
    if objective.overlong.factor and objective.overlong.buffer(limit) > limit:
        raise ConfigError(
            f"learner.objective.overlong.buffer_tokens is {objective.overlong.buffer(limit)}, but "
            f"an answer has at most rollout.max_new_tokens = {limit}; set a smaller buffer"
        )
    is_relative = config.reward.combine == "decoupled"
    if objective.advantage == "canon" and (is_relative or config.reward.floors):
        key = "combine: decoupled" if is_relative else "floors"
        raise ConfigError(
            f"learner.objective.advantage: canon needs rewards that are not negative, and reward."
            f"{key} makes some that are; remove it, or take another advantage"
        )
