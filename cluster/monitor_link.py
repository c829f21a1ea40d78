"""The driver's line to the monitor actor: calls are sent in order, kept while the actor restarts,
and never waited for until the end of the run. A row whose actor died before it answered is sent
again: it may stand in the files twice, and is never missing."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.fleet import Fleet, Lost, Reply
from cluster.placement import placement_of
from cluster.remote import spawn
from cluster.role_host import RoleFailure
from cluster.roles import build_monitor
from safeladder.config import Config

log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
CALL_DEADLINE_S = 60.0
NOTICES_EVERY_S = 5.0

_NOTICES = "notices"
"""Context of a look for notices; unlike a row it is not sent again."""


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
        """Rows that are out."""
        self._notices: list[str] = []
        self._is_looking = False
        self._next_look_s = 0.0

    def send(self, method: str, **arguments: Any) -> None:
        """Queue one call; the oldest is dropped if the monitor stays away for long."""
        self._queue.append((method, arguments))
        self.pump()

    def pump(self) -> None:
        """Send what can be sent and collect answers; never waits."""
        for event in self._fleet.poll():
            if isinstance(event, Lost):
                self._is_looking = False
                rows = [context for context in event.contexts if context != _NOTICES]
                self._open -= len(rows)
                self._queue.extendleft(reversed(rows))
            elif isinstance(event, Reply):
                self._on_reply(event)
        actor = self._fleet.least_busy()
        if actor is not None:
            self._look(actor, time.monotonic())
        while actor is not None and self._queue:
            call = self._queue.popleft()
            if not self._fleet.call(
                actor, call[0], call[1], context=call, deadline_s=CALL_DEADLINE_S
            ):
                self._queue.appendleft(call)
                return
            self._open += 1

    def take_notices(self) -> list[str]:
        """What the monitor wants people to know (W&B fell back), each sentence once."""
        notices, self._notices = self._notices, []
        return notices

    def finish(self, summary: Mapping[str, Any], timeout_s: float = 60.0) -> None:
        """Deliver everything, then the summary, within ``timeout_s``."""
        self.send("finish", summary=dict(summary))
        deadline = self.flush(timeout_s)
        self._next_look_s = 0.0  # the end of W&B may have brought a last one
        self.pump()
        while self._is_looking and time.monotonic() < deadline:
            self.pump()
            time.sleep(0.02)

    def flush(self, timeout_s: float = 60.0) -> float:
        """Wait until everything is delivered, ``timeout_s`` at most; returns that deadline."""
        deadline = time.monotonic() + timeout_s
        while (self._queue or self._open) and time.monotonic() < deadline:
            self.pump()
            time.sleep(0.02)
        return deadline

    def close(self) -> None:
        """End the actor."""
        self._fleet.close()

    def _look(self, actor: str, now_s: float) -> None:
        if self._is_looking or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + NOTICES_EVERY_S
        self._is_looking = self._fleet.call(
            actor, "notices", {}, context=_NOTICES, deadline_s=CALL_DEADLINE_S
        )

    def _on_reply(self, reply: Reply) -> None:
        is_failure = isinstance(reply.value, RoleFailure)
        if reply.context == _NOTICES:
            self._is_looking = False
            self._notices += [] if is_failure else reply.value
            return
        self._open -= 1
        if is_failure:
            log.warning("monitor %s: %s", reply.context[0], reply.value.message)
