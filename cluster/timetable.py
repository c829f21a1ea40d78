"""What is to come in a simulated run, in order of virtual time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.protocol import Event, GroupGenerated
from safeladder.records import TrainOrder


@dataclass(frozen=True, slots=True)
class StepDone:
    """The learner has trained a batch; the driver hears of it a little later."""

    order: TrainOrder


Happening = Event | StepDone


H = TypeVar("H")


class Timetable(Generic[H]):
    """What is to come, in order of virtual time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, H]] = []
        self._num_added = 0

    def add(self, delay_s: float, happening: H) -> None:
        """Let something happen later."""
        self._num_added += 1
        heapq.heappush(self._heap, (self.now_s + delay_s, self._num_added, happening))

    def advance(self, at_most_s: float) -> list[H]:
        """Go to the next event, at most so far, and return all that happens then."""
        limit = self.now_s + at_most_s
        self.now_s = min(limit, self._heap[0][0]) if self._heap else limit
        due = []
        while self._heap and self._heap[0][0] <= self.now_s:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def keep_generated(self) -> None:
        """A driver died: of what was to come, only the engines' work is still delivered."""
        self._heap = [entry for entry in self._heap if isinstance(entry[2], GroupGenerated)]
        heapq.heapify(self._heap)
