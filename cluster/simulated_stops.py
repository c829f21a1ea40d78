"""Interrupted leases of a simulated run: what their engines had made, and what goes on from it.

Part of the models of the roles (``simulated_roles``); knows nothing of how the coordinator decides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cluster.protocol import GrantLease, GroupInterrupted
from cluster.witness import Witness
from safeladder.partials import InterruptCause, PartialHeader
from safeladder.records import GroupKey

SHARE_LOST = 0.1
"""Of payloads that cannot be read when another engine goes on from them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of a group, and the version of the oldest one."""

    num_tokens: int
    version: int


@dataclass(frozen=True, slots=True)
class _Work:
    """A lease in an engine."""

    command: GrantLease
    begun: _Part
    num_tokens: int
    """Of the finished group."""


class SimulatedStops:
    """Leases in flight, and the parts that were stored."""

    def __init__(self, rng: random.Random, witness: Witness) -> None:
        self._rng = rng
        self._witness = witness
        self._out: dict[tuple[GroupKey, int], _Work] = {}
        self._parts: dict[str, _Part] = {}

    def begin(self, command: GrantLease, served: int, num_tokens: int) -> int:
        """An engine that serves ``served`` works on a lease from now on. Returns the version of
        the oldest token that the group will have."""
        lease = command.lease
        begun = _Part(0, served)
        if lease.begun is not None:
            self._witness.saw_use(lease.begun)
            if self._rng.random() >= SHARE_LOST:
                part = self._parts[lease.begun]
                begun = _Part(part.num_tokens, min(part.version, served))
        self._out[lease.key, lease.attempt] = _Work(command, begun, num_tokens)
        return begun.version

    def stop(self, key: GroupKey, attempt: int, cause: InterruptCause) -> GroupInterrupted | None:
        """Stop a lease at some token; None if it is not in flight."""
        work = self._out.pop((key, attempt), None)
        if work is None:
            return None
        lease = work.command.lease
        num_tokens = self._rng.randint(work.begun.num_tokens, work.num_tokens - 1)
        payload = None
        if num_tokens:
            payload = f"part of {key} attempt {attempt} fence {lease.fence}"
            self._parts[payload] = _Part(num_tokens, work.begun.version)
        header = PartialHeader(
            key=key,
            attempt=attempt,
            fence=lease.fence,
            engine=work.command.engine,
            cause=cause,
            num_tokens=num_tokens,
            min_version=work.begun.version if num_tokens else None,
            generate_s=1.0,
        )
        return GroupInterrupted(header, payload)
