"""What an order names, read from the payload store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from safeladder.ports import PayloadStore
from safeladder.records import Floats, RolloutGroup, TrainGroup

Payload = tuple[RolloutGroup, Sequence[Floats] | None]
"""Completions of a group, and its reference log-probs if the objective needs them."""


async def read_payloads(store: PayloadStore, groups: Sequence[TrainGroup]) -> list[Payload | None]:
    """One for each group, in order; None if any part of it is lost. All are read at once: several
    may lie in one object."""
    return await asyncio.gather(*(_read(store, group) for group in groups))


async def _read(store: PayloadStore, group: TrainGroup) -> Payload | None:
    try:
        if group.reference is None:
            return await store.get(group.payload), None
        completions, reference = await asyncio.gather(
            store.get(group.payload), store.get(group.reference)
        )
    except KeyError:
        return None
    return completions, reference
