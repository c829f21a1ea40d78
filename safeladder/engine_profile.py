"""What a rollout engine can do and how it fares: measured numbers, no decision.

``profiles.json`` in a run's folder holds one ``EngineProfile.as_row`` for each engine, by fleet.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What one engine can do, as it measured itself when it came up."""

    kv_tokens: int
    """Tokens whose keys and values fit into its cache, prompts included."""
    max_sequences: int
    """Sequences that it decodes together; more of them wait inside it."""
    speeds: tuple[tuple[int, float], ...] = ()
    """(sequences decoded together, sampled tokens a second of all of them), by rising sequences;
    empty if it was not measured."""
    link_bytes_per_s: float | None = None
    """Bytes of weights a second, from the store into the engine, at its first load; None before."""

    def tokens_per_s(self, num_sequences: int) -> float | None:
        """Sampled tokens a second with so many sequences: linear between what was measured, in
        proportion below it, constant above. None if nothing was measured."""
        if not self.speeds:
            return None
        asked = min(num_sequences, self.max_sequences)
        at = bisect_left(self.speeds, asked, key=lambda speed: speed[0])
        if at == len(self.speeds):
            return self.speeds[-1][1]
        low, slow = self.speeds[at - 1] if at else (0, 0.0)
        high, fast = self.speeds[at]
        return slow + (fast - slow) * (asked - low) / (high - low)

    def as_row(self) -> dict[str, Any]:
        """The fields by name, as JSON values."""
        return {
            "kv_tokens": self.kv_tokens,
            "max_sequences": self.max_sequences,
            "speeds": [list(speed) for speed in self.speeds],
            "link_bytes_per_s": self.link_bytes_per_s,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The inverse of ``as_row``. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for what
        no engine can have measured."""
        for name in ("kv_tokens", "max_sequences"):
            if type(row[name]) is not int or row[name] < 1:
                raise ValueError(f"{name} is a whole number above 0, not {row[name]!r:.40}")
        speeds = tuple((int(sequences), float(speed)) for sequences, speed in row["speeds"])
        for speed in (speed for _, speed in speeds):
            if not 0 < speed < math.inf:
                raise ValueError(f"speeds are tokens a second above 0, not {speed!r}")
        return cls(**{**row, "speeds": speeds})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How full an engine is at one moment."""

    kv_share: float
    """Share of its cache that requests in flight hold, in [0, 1]."""
    running: int
    """Sequences that are being decoded."""
    waiting: int
    """Sequences that it has been given but cannot decode yet."""
    preemptions: int
    """Sequences whose cache it had to give up since its start, to be computed again."""
