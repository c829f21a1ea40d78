"""Leases as calls to engines, and the answers as events for the coordinator."""

from __future__ import annotations

from typing import Any

from actors.lease_answers import GeneratedGroup
from cluster.fleet import Reply
from cluster.protocol import (
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    GroupInterrupted,
    InterruptLease,
)
from cluster.rollout_fleets import RolloutFleets
from safeladder.partials import InterruptedGroup
from safeladder.records import GenerationFailure

GRACE_S = 30.0
"""An engine may answer this much later than a lease's own deadline."""


def send(fleets: RolloutFleets, command: GrantLease | InterruptLease, fence: int) -> None:
    """Send a lease, or ask for its answer now. What an engine says to the latter tells nothing: the
    lease itself is answered. If the engine is gone, ``Lost`` tells."""
    deadline_s = GRACE_S
    if isinstance(command, GrantLease):
        method: str = "generate"
        arguments: dict[str, Any] = {"lease": command.lease}
        deadline_s += command.lease.deadline_s
    else:
        method = "interrupt"
        arguments = {"key": command.key, "attempt": command.attempt, "fence": fence}
    fleets.call(command.engine, method, arguments, context=command, deadline_s=deadline_s)


def answer(reply: Reply) -> GroupGenerated | GroupInterrupted | GenerationFailed:
    """What the reply to a ``GrantLease`` means."""
    value = reply.value
    if isinstance(value, GeneratedGroup):
        return GroupGenerated(value.header, value.payload)
    if isinstance(value, InterruptedGroup):
        return GroupInterrupted(value.header, value.payload)
    if not isinstance(value, GenerationFailure):
        detail = f"{value.kind}: {value.message}"
        value = GenerationFailure.of(
            reply.context.lease, reply.actor, "engine_error", detail, retryable=True
        )
    return GenerationFailed(value)
