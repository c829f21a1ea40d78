"""Whether a call can still end in its time, judged by how long the calls before it took.

Refusing at once is kinder than a timeout: the caller keeps its time and knows when to come back.
Where the estimate is unsure it errs towards letting a call in. Knows neither gRPC nor verifiers.
"""

from __future__ import annotations

_WEIGHT = 0.1
"""Of the newest call in the running means."""


class Pace:
    """Running means of seconds for a call and seconds for a sample, of one principle."""

    def __init__(self) -> None:
        self._call_s = 0.0
        self._sample_s = 0.0
        self._num_calls = 0

    def add(self, num_samples: int, seconds: float) -> None:
        """A call of ``num_samples`` took so long, waiting included."""
        self._num_calls += 1
        weight = max(_WEIGHT, 1 / self._num_calls)
        self._call_s += weight * (seconds - self._call_s)
        self._sample_s += weight * (seconds / num_samples - self._sample_s)

    def estimate_s(self, num_samples: int) -> float:
        """The smaller of what calls take and what so many samples take: verifiers that judge all
        samples at once and verifiers that judge one by one are both not overrated."""
        return min(self._call_s, num_samples * self._sample_s)
