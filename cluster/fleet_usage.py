"""What each rollout fleet does with its engines: one set of figures a step, one for the whole run.

Fed with finished groups and with the answers of engines to heartbeats; decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from actors.rollout import EngineStatus
from safeladder.fleet_config import fleet_of
from safeladder.records import GroupHeader


@dataclass(slots=True)
class _Sums:
    """Of one fleet, over some time."""

    tokens: int = 0
    groups: int = 0
    staleness: int = 0
    busy_s: float = 0.0
    watched_s: float = 0.0
    """Engine-seconds that ``busy_s`` is part of."""
    kv_shares: float = 0.0
    reports: int = 0
    engines: set[str] = field(default_factory=set)

    def add(self, other: _Sums) -> None:
        for name in ("tokens", "groups", "staleness", "busy_s", "watched_s", "kv_shares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reports += other.reports
        self.engines |= other.engines

    def figures(self, elapsed_s: float) -> dict[str, float]:
        """What can be said; a figure without any report is left out."""
        figures = {
            "engines": float(len(self.engines)),
            "groups": float(self.groups),
            "tokens_per_s": self.tokens / max(elapsed_s, 1e-9),
        }
        if self.groups:
            figures["staleness"] = self.staleness / self.groups
        if self.watched_s:
            figures["busy"] = self.busy_s / self.watched_s
        if self.reports:
            figures["kv"] = self.kv_shares / self.reports
        return figures


class FleetUsage:
    """All fleets since the start. ``busy`` is the share of time with at least one group in flight,
    ``kv`` the mean share of the cache in use, ``staleness`` the mean age of a group's oldest token
    in versions when the group was generated, ``engines`` those heard of."""

    def __init__(self) -> None:
        self._now: defaultdict[str, _Sums] = defaultdict(_Sums)
        """Since the last row."""
        self._all: defaultdict[str, _Sums] = defaultdict(_Sums)
        self._last: dict[str, tuple[float, float]] = {}
        """Engine → (time, its busy seconds) at its last answer."""
        self._all_s = 0.0

    def generated(self, header: GroupHeader, version: int) -> None:
        """A group came back while the learner was at ``version``."""
        sums = self._now[fleet_of(header.engine)]
        sums.groups += 1
        sums.tokens += sum(header.lengths)
        sums.staleness += version - header.min_version
        sums.engines.add(header.engine)

    def beat(self, engine: str, status: EngineStatus, now_s: float) -> None:
        """An engine answered a heartbeat."""
        sums = self._now[fleet_of(engine)]
        sums.engines.add(engine)
        if status.load is not None:
            sums.kv_shares += status.load.kv_share
            sums.reports += 1
        before_s, busy_s = self._last.get(engine, (now_s, status.busy_s))
        sums.watched_s += now_s - before_s
        sums.busy_s += min(status.busy_s - busy_s, now_s - before_s)
        self._last[engine] = (now_s, status.busy_s)

    def row(self, elapsed_s: float) -> dict[str, float]:
        """``fleet/<name>/<figure>`` since the last row, ``elapsed_s`` ago."""
        row = {
            f"fleet/{fleet}/{name}": value
            for fleet, sums in self._now.items()
            for name, value in sums.figures(elapsed_s).items()
        }
        for fleet, sums in self._now.items():
            self._all[fleet].add(sums)
        self._now.clear()
        self._all_s += elapsed_s
        return row

    def summary(self) -> dict[str, dict[str, Any]]:
        """Fleet → figures over all rows."""
        return {
            fleet: {name: round(value, 3) for name, value in sums.figures(self._all_s).items()}
            for fleet, sums in sorted(self._all.items())
        }
