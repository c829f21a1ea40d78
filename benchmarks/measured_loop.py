"""The loop of a run, with a stopwatch for its turns."""

from __future__ import annotations

import time

from cluster.loop import Loop
from cluster.probe_log import Ruling


class MeasuredLoop(Loop):
    """See ``turns``."""

    turns: list[float]
    """Seconds that each turn worked, its rest left out."""

    def run(self) -> Ruling | None:
        """As it is."""
        self.turns = []
        return super().run()

    def _rest(self, began: float) -> None:
        self.turns.append(time.monotonic() - began)
        super()._rest(began)
