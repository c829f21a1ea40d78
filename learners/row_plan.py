"""Which rows the n-th step of a stage trains, and at what learning rate: a pure function of
(number of rows, settings, seed, step), so that a resumed run goes on at the right row.

Imports nothing heavy: the driver and ``check`` ask it too.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from safeladder.config import RowsConfig


@dataclass(frozen=True, slots=True)
class RowPlan:
    """All steps of a stage. Steps count from 1, rows from 0."""

    num_rows: int
    settings: RowsConfig
    seed: int
    max_steps: int = 0
    """The stage ends after so many steps at most; 0 does not bound it."""
    has_validation: bool = True
    """Whether ``settings.validation_share`` counts."""

    @property
    def validation(self) -> list[int]:
        """Rows that are never trained, in file order; the first seed decides, not the epoch."""
        share = self.settings.validation_share if self.has_validation else 0.0
        count = int(share * self.num_rows)
        return sorted(random.Random(f"{self.seed}/validation").sample(range(self.num_rows), count))

    @property
    def trained(self) -> list[int]:
        """The other rows, in file order."""
        held = set(self.validation)
        return [row for row in range(self.num_rows) if row not in held]

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may have fewer rows."""
        return -(-(self.num_rows - len(self.validation)) // self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of the stage."""
        wanted = self.settings.epochs * self.steps_per_epoch
        return min(wanted, self.max_steps) if self.max_steps else wanted

    def epoch(self, step: int) -> int:
        """The pass, from 0, that a step belongs to."""
        return (step - 1) // self.steps_per_epoch

    def end_of_pass(self, step: int) -> int:
        """The last step of the pass that a step belongs to."""
        return min((self.epoch(step) + 1) * self.steps_per_epoch, self.num_steps)

    def rows(self, step: int) -> list[int]:
        """Rows of a step; every pass is shuffled by (seed, epoch)."""
        order = self.trained
        random.Random(f"{self.seed}/{self.epoch(step)}").shuffle(order)
        start = (step - 1) % self.steps_per_epoch * self.settings.batch_size
        return order[start : start + self.settings.batch_size]

    def learning_rate(self, step: int) -> float:
        """Linear rise over ``warmup_ratio`` of all steps, then constant, or half a cosine that
        would be 0 after the last step."""
        peak, total = self.settings.lr, self.num_steps
        warmup = math.ceil(self.settings.warmup_ratio * total)
        if step <= warmup:
            return peak * step / warmup
        if self.settings.schedule == "constant":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / (total - warmup)))
