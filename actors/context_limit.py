"""Whether a judge's prompt, with what follows it, fits into its model's context.

A policy decides how long the text is that a judge reads, so a prompt that is too long is nothing
rare. A model that is asked beyond its context still answers, slowly and without meaning: such a
sample gets no verdict, before the model is asked.
"""

from __future__ import annotations

from typing import Any

from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, Tokens


def context_tokens(model_config: Any, max_tokens: int | None = None) -> int | None:
    """Tokens that a Hugging Face model reads at most: by its config, or ``max_tokens`` if that is
    less. None if neither says."""
    known = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (known, max_tokens) if isinstance(limit, int) and limit > 0]
    return min(limits, default=None)


def too_long(prompt: Tokens, num_following: int, limit: int | None) -> UnjudgedError | None:
    """Why ``prompt`` [P] and ``num_following`` tokens behind it are too many; None if they fit."""
    if limit is None or prompt.size + num_following <= limit:
        return None
    detail = f"the judge's prompt has {prompt.size} tokens, with {num_following} to follow; "
    return UnjudgedError(InvalidCause.ABSTAIN, f"{detail}its context ends at {limit}")
