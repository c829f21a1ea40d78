"""How long groups spend in each state on their way to the learner.

Owns sums over the groups of a step. Reads no clock: a group carries when it entered each state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from cluster.transitions import GroupState

SPANS = {
    "generate": (GroupState.LEASED, GroupState.GENERATED),
    "score": (GroupState.GENERATED, GroupState.SCORED),
    "queue": (GroupState.SCORED, GroupState.ADMITTED),
}
"""Part of a group's life → the states that it lies between: writing, verdicts and reference, and
the wait for a step."""


class GroupLives:
    """The groups that were admitted to a step since the last look."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in SPANS}

    def add(self, entered_s: Mapping[GroupState, float]) -> None:
        """A group is ADMITTED; ``entered_s`` says when it entered each state in this attempt."""
        for name, (source, target) in SPANS.items():
            if source in entered_s and target in entered_s:
                self._seconds[name].append(entered_s[target] - entered_s[source])

    def drain(self) -> dict[str, float]:
        """``group/<part>_mean_s`` and ``group/<part>_p99_s``, without the parts that nobody has
        seen; ``group/tail_s`` is how much longer than the median group the slowest was written."""
        found = {}
        if written := self._seconds["generate"]:
            found["group/tail_s"] = max(written) - median(written)
        for name, seconds in self._seconds.items():
            if seconds:
                found[f"group/{name}_mean_s"] = sum(seconds) / len(seconds)
                found[f"group/{name}_p99_s"] = percentile(seconds, 0.99)
                seconds.clear()
        return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
