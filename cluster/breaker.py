"""The circuit breaker of one verifier: tells an outage from a few bad samples.

Pure. It counts verdicts; what follows from an open breaker is the scoring desk's business. Opens
when too many of the newest samples were INVALID when they were first judged. Closes when the
verifier is seen to work: a call that went out since then brings nothing INVALID, or a sample that
was judged well before is judged well again. The INVALID verdicts are then forgotten and the valid
ones stay, so that it opens again as soon as the share is too large again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from safeladder.config import BreakerConfig
from safeladder.records import Verdict, VerdictStatus


class Breaker:
    """Shared by all groups that one fleet judges."""

    def __init__(self, rule: BreakerConfig) -> None:
        self._rule = rule
        self._are_invalid: deque[bool] = deque(maxlen=rule.window)
        self.turn = 0
        """Counts openings and closings: odd while open. A call that went out at another turn says
        nothing about this one."""

    @property
    def invalid_share(self) -> float:
        """Of the samples in the window, in [0, 1]; 0 before the first."""
        return sum(self._are_invalid) / max(1, len(self._are_invalid))

    @property
    def is_open(self) -> bool:
        """Whether the verifier counts as failing."""
        return self.turn % 2 == 1

    def follow(self, rule: BreakerConfig) -> None:
        """Go by another rule from now on, with what has been seen so far."""
        self._rule = rule
        self._are_invalid = deque(self._are_invalid, maxlen=rule.window)
        if self.is_open != self._is_too_much:
            self.turn += 1

    def note(self, verdicts: Iterable[Verdict]) -> None:
        """Take the first verdicts on some samples. What is asked again does not count again: one
        bad sample would otherwise look like an outage in the end."""
        self._are_invalid.extend(verdict.status is VerdictStatus.INVALID for verdict in verdicts)
        if not self.is_open and self._is_too_much:
            self.turn += 1

    def prove(self, turn: int) -> None:
        """The verifier has answered as it should to a call that went out at that turn."""
        if self.is_open and turn == self.turn:
            self._are_invalid = deque(
                (is_invalid for is_invalid in self._are_invalid if not is_invalid),
                maxlen=self._rule.window,
            )
            self.turn += 1

    def explain(self) -> str:
        """Why it is open, in words."""
        return f"{self.invalid_share:.0%} of the last {len(self._are_invalid)} verdicts are INVALID"

    @property
    def _is_too_much(self) -> bool:
        enough = len(self._are_invalid) >= min(self._rule.min_verdicts, self._rule.window)
        return enough and self.invalid_share > self._rule.max_invalid_share
