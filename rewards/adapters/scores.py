"""From what a reward function returned to a score in [0, 1], or to the reason why there is none.

A value outside the promised range is never clipped: it shows that the range, or the function, is
not what the configuration says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rewards.judging import Judgment, NotApplicableError, UnjudgedError
from safeladder.records import InvalidCause

_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Scale:
    """What a reward function promises: numbers in [low, high], and whether it may answer None."""

    low: float = 0.0
    high: float = 1.0
    optional: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high - self.low) and self.low < self.high):
            raise ValueError(
                f"low {self.low} must be below high {self.high}, both and their distance finite"
            )

    def judgment(self, value: object) -> Judgment:
        """``(value - low) / (high - low)``; raises for all that is no number in the range.

        >>> Scale(-1, 1).judgment(0.5).score
        0.75
        """
        if value is None:
            if self.optional:
                raise NotApplicableError("the function returned None")
            raise UnjudgedError(InvalidCause.ABSTAIN, "the function returned None")
        if not isinstance(value, bool | int | float):
            raise UnjudgedError(InvalidCause.MALFORMED, f"{_shown(value)} is no number")
        if value != value:
            raise UnjudgedError(InvalidCause.MALFORMED, "the function returned NaN")
        if not self.low <= value <= self.high:
            detail = f"{_shown(value)} is outside [{self.low:g}, {self.high:g}]"
            raise UnjudgedError(InvalidCause.OUT_OF_RANGE, detail)
        score = (value - self.low) / (self.high - self.low)
        return Judgment(score, evidence=f"returned {_shown(value)}")


def entry(answer: object, key: str) -> Any:
    """The value under a key that must be there; None stays None."""
    if not isinstance(answer, dict):
        detail = f"returned {_shown(answer)} instead of a mapping with {key!r}"
        raise UnjudgedError(InvalidCause.MALFORMED, detail)
    if key not in answer:
        raise UnjudgedError(InvalidCause.MALFORMED, f"returned a mapping without {key!r}")
    return answer[key]


def one_each(answer: object, expected: int) -> list[Any]:
    """The list with one value for each of ``expected`` samples."""
    if not isinstance(answer, list):
        detail = f"returned {_shown(answer)} instead of a list"
        raise UnjudgedError(InvalidCause.MALFORMED, detail)
    if len(answer) != expected:
        detail = f"returned {len(answer)} values for {expected} samples"
        raise UnjudgedError(InvalidCause.MALFORMED, detail)
    return answer


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > 10**_SHOWN_CHARS:
        return "a huge number"
    return repr(value)[:_SHOWN_CHARS]
