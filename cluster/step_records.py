"""``steps.jsonl`` read back: what each step measured, and which weights it made. Written by
``learners.step_log``, which has the layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.history import read_lines

Row = Mapping[str, Any]


class StepRecords:
    """``steps.jsonl`` as it stands."""

    def __init__(self, path: Path) -> None:
        self._steps: dict[tuple[int, int], Row] = {}
        self._digests: dict[int, list[tuple[int, str]]] = {}
        self._learners: dict[int, Row] = {}
        for row in read_lines(path):
            match row:
                case {"kind": "step", "step": int(step), "fence": int(fence), "metrics": dict()}:
                    self._steps[step, fence] = row
                case {"kind": "version", "version": int(at), "fence": int(f), "digest": str(text)}:
                    self._digests.setdefault(at, []).append((f, text))
                case {
                    "kind": "learner", "fence": int(f), "settings": dict(), "environment": dict()
                }:  # fmt: skip
                    self._learners[f] = row

    def metrics(self, step: int, fence: int) -> Mapping[str, float] | None:
        """What a driver's step measured; None if it was not finished."""
        row = self._steps.get((step, fence))
        return None if row is None else row["metrics"]

    def learner(self, fence: int) -> Row | None:
        """Environment and settings of a driver's learners."""
        return self._learners.get(fence)

    def digests(self, version: int, fence: int) -> set[str]:
        """Digests under which a version was published by this driver and those that resumed it."""
        return {text for f, text in self._digests.get(version, []) if f >= fence}
