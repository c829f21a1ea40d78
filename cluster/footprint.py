"""Memory of the run on this machine: the sum of PSS (proportional set size: each shared page counts
once) over the driver and all its descendants. Sampled in a thread, since reading it is slow.
"""

from __future__ import annotations

import threading

import psutil

SAMPLE_EVERY_S = 10.0


class Footprint:
    """Keeps the peak since ``start``."""

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="footprint", daemon=True)

    @property
    def peak_pss_bytes(self) -> int:
        """Highest sum seen."""
        return self._peak

    def start(self) -> None:
        """Begin sampling."""
        self._thread.start()

    def stop(self) -> None:
        """End sampling, with one last look."""
        self._peak = max(self._peak, total_pss_bytes())
        self._stop.set()
        self._thread.join(timeout=5)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._peak = max(self._peak, total_pss_bytes())


def total_pss_bytes() -> int:
    """Sum of PSS over this process and its descendants, now (Linux)."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended while we looked
            continue
    return total
