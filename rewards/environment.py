"""What an environment says of its own conversation, as a verdict."""

from __future__ import annotations

import math
from typing import Any

from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from safeladder.conversation import CONVERSATION
from safeladder.records import InvalidCause, ScoreRequest


class EnvironmentScore(RuleVerifier):
    """The number under ``fact`` among the facts of the conversation, such as the reward of an
    OpenRLHF agent, from ``low`` .. ``high`` to 0 .. 1. Beyond them it is INVALID(out_of_range);
    without one it is INVALID(error)."""

    is_quick = True

    def __init__(
        self, *, principle: str, fact: str = "reward", low: float = 0.0, high: float = 1.0
    ) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low must be below high, got {low} and {high}")
        super().__init__(principle, {"fact": fact, "low": low, "high": high})
        self._fact = fact
        self._low = low
        self._high = high

    def judge(self, request: ScoreRequest) -> Judgment:
        """Read the fact."""
        conversation = request.meta.get(CONVERSATION, {})
        value: Any = conversation.get("facts", {}).get(self._fact)
        if isinstance(value, bool) or not isinstance(value, int | float):
            detail = f"the environment says no number as {self._fact!r}, but {value!r}"
            raise UnjudgedError(InvalidCause.ERROR, detail)
        return Judgment((value - self._low) / (self._high - self._low), evidence=f"{value:g}")
