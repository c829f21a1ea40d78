"""The learner's ranks as one: every operation goes to all of them, in one order, and is done when
all have answered. A rank that fails takes the group with it: collectives cannot go on without it.

Owns: spawning ranks, their rendezvous, the order of operations, deadlines. Does not know what a
step computes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.placement import placement_of
from cluster.remote import PENDING, kill, outcome, spawn, submit
from cluster.role_host import BuildRole, RoleFailure
from cluster.roles import build_learner
from safeladder.commit_points import reached_for
from safeladder.config import Config
from safeladder.errors import EnvironmentUnfitError, RunFailedError


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerReply:
    """Rank 0's answer to one operation, once every rank has answered."""

    context: Any
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerLost:
    """A rank died, raised or overran the deadline."""

    context: Any
    reason: str
    exit_code: int


@dataclass(slots=True)
class _Operation:
    context: Any
    results: list[Any]
    """Reference to each rank's."""
    values: dict[int, Any]
    """Rank → what it answered."""
    deadline_s: float
    started: float | None = None


class LearnerGroup:
    """``config.learner.ranks`` DeepSpeed processes."""

    def __init__(self, config: Config, owner: Any, build: BuildRole = build_learner) -> None:
        self._config = config
        placement = placement_of("learner", config)
        self._ranks = [
            spawn(
                f"learner-{rank}",
                build,
                {"rank": rank, "config": config},
                placement,
                owner=owner,
            )
            for rank in range(config.learner.ranks)
        ]
        self._operations: deque[_Operation] = deque()

    @property
    def publisher(self) -> Any:
        """The rank that publishes, as an actor."""
        return self._ranks[0]

    @property
    def is_idle(self) -> bool:
        """Whether every operation has been answered."""
        return not self._operations

    @property
    def waiting(self) -> list[Any]:
        """References of which one is there as soon as a rank has done something."""
        if not self._operations:
            return []
        first = self._operations[0]
        return [r for rank, r in enumerate(first.results) if rank not in first.values]

    def start(self, model_path: Path, resume_from: Path | None) -> None:
        """Load the model on every rank and join the process group. The reply's context is
        ``start``. Raises ``RunFailedError`` if rank 0 does not come up."""
        address = outcome(submit(self._ranks[0], "rendezvous", {}), self._start_deadline_s)
        if address is PENDING:
            text = f"learner rank 0 did not come up within {self._start_deadline_s:.0f} s"
            raise RunFailedError(text, EnvironmentUnfitError.exit_code)
        if isinstance(address, RoleFailure):
            text = f"learner rank 0 did not come up: {address.kind}: {address.message}"
            raise RunFailedError(text, address.exit_code)
        host, port = address
        self.call(
            "start",
            {
                "master_address": host,
                "master_port": port,
                "model_path": model_path,
                "resume_from": resume_from,
            },
            context="start",
            deadline_s=self._start_deadline_s,
        )

    def call(
        self, method: str, arguments: Mapping[str, Any], *, context: Any, deadline_s: float
    ) -> None:
        """Queue one operation on every rank; they run it after all earlier ones."""
        reached_for([method], "asked")
        results = [submit(rank, method, arguments) for rank in self._ranks]
        reached_for([method], "sent")
        self._operations.append(_Operation(context, results, {}, deadline_s))

    def poll(self) -> list[LearnerReply | LearnerLost]:
        """Operations finished since the last poll, in order; never waits."""
        events: list[LearnerReply | LearnerLost] = []
        while self._operations:
            event = self._finished(self._operations[0])
            if event is None:
                break
            self._operations.popleft()
            events.append(event)
            if isinstance(event, LearnerLost):
                self._operations.clear()
        return events

    def close(self) -> None:
        """End all ranks at once."""
        for rank in self._ranks:
            kill(rank)

    @property
    def _start_deadline_s(self) -> float:
        return self._config.placement.start_deadline_s

    def _finished(self, operation: _Operation) -> LearnerReply | LearnerLost | None:
        operation.started = operation.started or time.monotonic()
        for rank, result in enumerate(operation.results):
            if rank in operation.values:
                continue
            value = outcome(result, 0.0)
            if value is not PENDING:
                operation.values[rank] = value
            if isinstance(value, RoleFailure):
                return LearnerLost(
                    context=operation.context,
                    reason=f"learner rank {rank}: {value.kind}: {value.message}",
                    exit_code=value.exit_code,
                )
        if len(operation.values) < len(operation.results):
            if time.monotonic() - operation.started > operation.deadline_s:
                return LearnerLost(
                    context=operation.context,
                    reason=f"no answer to {operation.context} within {operation.deadline_s:.0f} s",
                    exit_code=1,
                )
            return None
        return LearnerReply(context=operation.context, value=operation.values[0])
