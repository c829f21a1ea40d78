"""How far the learner is: the committed version, the running step, what is published.

Owns the deadlines of a step and of a publication. Does not know what is in a step.
"""

from __future__ import annotations

import math

from safeladder.config import Config

QUEUE_GRACE_S = 1800.0
"""The learner works off checkpoints and publications before a step; its own deadlines are shorter,
so this one only ends a wait that nobody else ended."""


class LearnerState:
    """Counts versions; version v exists once step v is committed."""

    def __init__(self, version: int, config: Config) -> None:
        self.version = version
        """Committed."""
        self.last_step = config.run.steps
        """The run ends with it."""
        self.published = 0
        """Engines can load it. Version 0 is the model that they start with."""
        self.running_step: int | None = None
        self._asked = 0
        self._deadline_s = config.learner.step_deadline_s + QUEUE_GRACE_S
        self._step_due_s = math.inf
        self._publication_due_s = math.inf

    @property
    def is_trained(self) -> bool:
        """Whether the last step is committed."""
        return self.version >= self.last_step

    def end_early(self) -> int:
        """The running step, else the last committed one, is the last; its number."""
        self.last_step = min(self.last_step, self.running_step or self.version)
        return self.last_step

    def start_step(self, now_s: float) -> int:
        """Begin the next step and return its number."""
        self.running_step = self.version + 1
        self._step_due_s = now_s + self._deadline_s
        return self.running_step

    def cancel_step(self) -> None:
        """The order cannot be carried out; another one for the same step will follow."""
        self.running_step = None
        self._step_due_s = math.inf

    def commit(self) -> None:
        """End the running step: its version exists."""
        self.version += 1
        self.cancel_step()

    def start_publication(self, now_s: float) -> int | None:
        """The version to publish now, or None; each is asked for once."""
        if self._asked >= self.version:
            return None
        self._asked = self.version
        self._publication_due_s = now_s + self._deadline_s
        return self.version

    def publish(self, version: int) -> bool:
        """Note that engines can load a version. False if a newer one is there already."""
        if version <= self.published:
            return False
        self.published = version
        if version >= self._asked:
            self._publication_due_s = math.inf
        return True

    def overdue(self, now_s: float) -> str | None:
        """What did not happen before its deadline, in words."""
        if now_s > self._step_due_s:
            return f"step {self.running_step} was not committed within {self._deadline_s:.0f} s"
        if now_s > self._publication_due_s:
            return f"version {self._asked} was not published within {self._deadline_s:.0f} s"
        return None
