"""How far generation runs ahead of training: as little as keeps the learner busy.

Admission says how far it may run ahead. Where engines are faster than the learner, all of that
would be used: finished groups would wait until they are nearly stale, engines would hold so many
groups that long ones could not end in time, and those would be dropped. So the lead is led like a
congestion window: it falls while more than a step's worth waits as a step begins, and rises when
the learner had to wait. Below a bound of 2 admission leaves nothing to choose.
"""

from __future__ import annotations

from safeladder.config import ScheduleConfig

RISE = 0.5
"""Of a step's groups, after a step that the learner waited for."""
FALL = 0.25
"""Of the groups that wait beyond the next step's, after one that it did not wait for."""


class Lead:
    """Counts groups that are on their way or in training."""

    def __init__(self, schedule: ScheduleConfig) -> None:
        self._per_step = schedule.groups_per_step
        self._most = float((schedule.max_staleness + 1) * self._per_step)
        self._least = min(self._most, 2.0 * self._per_step)
        self._lead = self._most
        self._is_starved = True

    @property
    def num_groups(self) -> int:
        """So many may be leased beyond those that are trained."""
        return int(self._lead)

    def starve(self) -> None:
        """The learner waits for groups."""
        self._is_starved = True

    def step_begins(self, num_waiting: int) -> None:
        """The learner has taken its groups; ``num_waiting`` scored ones are left."""
        if self._is_starved:
            wanted = self._lead + RISE * self._per_step
        else:
            wanted = self._lead - FALL * max(0, num_waiting - self._per_step)
        self._lead = min(self._most, max(self._least, wanted))
        self._is_starved = False
