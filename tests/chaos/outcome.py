"""What the cases of ``make chaos`` came to, and the one line of figures at the end."""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.checker import Findings
from tests.tiny_model import save_tiny_model


@dataclass(frozen=True)
class Case:
    """One fault."""

    kind: str
    name: str
    survived: bool
    told: str = ""
    recovery_s: float | None = None
    """From the fault to the next trained step, a resume included."""


@dataclass
class Report:
    """All cases of one call."""

    seed: int
    is_short: bool
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sl-chaos-")))
    cases: list[Case] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    resumes: int = 0
    stale_writes_refused: int = 0

    def model(self) -> Path:
        """Folder of the tiny model, made once."""
        path = self.folder / "model"
        return path if path.exists() else save_tiny_model(path)

    @property
    def holds(self) -> bool:
        return all(case.survived for case in self.cases) and not self.findings.violations

    def figures(self) -> dict[str, Any]:
        """The numbers of the last line."""
        times = sorted(c.recovery_s for c in self.cases if c.recovery_s is not None)
        return {
            "name": "chaos",
            "figure": sum(case.survived for case in self.cases),
            "unit": "faults survived",
            "bar": len(self.cases),
            "holds": self.holds,
            "faults": len(self.cases),
            "lost": self.findings.lost,
            "trained_twice": self.findings.trained_twice,
            "stale_writes_accepted": self.findings.stale_writes_accepted,
            "stale_writes_refused": self.stale_writes_refused,
            "resumes": self.resumes,
            "recovery_s": {
                "p50": round(statistics.median(times), 1) if times else None,
                "p99": round(times[math.ceil(0.99 * len(times)) - 1], 1) if times else None,
            },
            "skipped": self.skipped,
            "seed": self.seed,
        }
