"""The circuit breaker of one principle: tells an outage of its verifier from a few bad samples.

Pure. It counts verdicts; what follows from an open breaker is the scoring desk's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from safeladder.config import BreakerConfig
from safeladder.records import Verdict, VerdictStatus


class Breaker:
    """Open while too many of the newest verdicts are INVALID; closed by one answer without any."""

    def __init__(self, rule: BreakerConfig) -> None:
        self._rule = rule
        self._are_invalid: deque[bool] = deque(maxlen=rule.window)

    @property
    def invalid_share(self) -> float:
        """Of the verdicts in the window, in [0, 1]; 0 before the first."""
        return sum(self._are_invalid) / max(1, len(self._are_invalid))

    @property
    def is_open(self) -> bool:
        """Whether the verifier counts as failing."""
        enough = len(self._are_invalid) >= min(self._rule.min_verdicts, self._rule.window)
        return enough and self.invalid_share > self._rule.max_invalid_share

    def note(self, verdicts: Iterable[Verdict]) -> None:
        """Take one answer of the verifier."""
        are_invalid = [verdict.status is VerdictStatus.INVALID for verdict in verdicts]
        if self.is_open and not any(are_invalid):
            self._are_invalid.clear()
        self._are_invalid.extend(are_invalid)

    def explain(self) -> str:
        """Why it is open, in words."""
        return f"{self.invalid_share:.0%} of the last {len(self._are_invalid)} verdicts are INVALID"
