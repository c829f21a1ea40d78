"""The driver's line to the monitor actor: calls are sent in order, kept while the actor restarts,
and never waited for until the end of the run."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.fleet import Fleet, Lost, Reply
from cluster.placement import placement_of
from cluster.remote import RoleFailure, spawn
from cluster.roles import build_monitor
from safeladder.config import Config

log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
CALL_DEADLINE_S = 60.0


class MonitorLink:
    """One monitor actor, behind a queue."""

    def __init__(self, config: Config, run_dir: Path, verifiers: Mapping[str, str]) -> None:
        placement = placement_of("monitor", config)
        arguments = {"run_dir": run_dir, "config": config, "verifiers": dict(verifiers)}
        self._fleet = Fleet(
            "monitor",
            lambda name: spawn(name, build_monitor, arguments, placement),
            size=1,
            start_deadline_s=config.placement.start_deadline_s,
        )
        self._queue: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_QUEUED)
        self._open = 0

    def send(self, method: str, **arguments: Any) -> None:
        """Queue one call; the oldest is dropped if the monitor stays away for long."""
        self._queue.append((method, arguments))
        self.pump()

    def pump(self) -> None:
        """Send what can be sent and collect answers; never waits."""
        for event in self._fleet.poll():
            if isinstance(event, Lost):
                self._open -= len(event.contexts)
                self._queue.extendleft(reversed(event.contexts))
            elif isinstance(event, Reply):
                self._open -= 1
                if isinstance(event.value, RoleFailure):
                    log.warning("monitor %s: %s", event.context[0], event.value.message)
        actor = self._fleet.least_busy()
        while actor is not None and self._queue:
            call = self._queue.popleft()
            if not self._fleet.call(
                actor, call[0], call[1], context=call, deadline_s=CALL_DEADLINE_S
            ):
                self._queue.appendleft(call)
                return
            self._open += 1

    def finish(self, summary: Mapping[str, Any], timeout_s: float = 60.0) -> None:
        """Deliver everything, then the summary, within ``timeout_s``."""
        self.send("finish", summary=dict(summary))
        deadline = time.monotonic() + timeout_s
        while (self._queue or self._open) and time.monotonic() < deadline:
            self.pump()
            time.sleep(0.02)

    def close(self) -> None:
        """End the actor."""
        self._fleet.close()
