"""What a finished or interrupted lease is answered with: records for the coordinator, made of
samples. Knows neither engine nor store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from safeladder.engine_profile import EngineLoad
from safeladder.partials import InterruptCause, PartialGroup, PartialHeader
from safeladder.records import Completion, GroupHeader, Lease, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedGroup:
    """A finished lease: the header for the coordinator, the handle for everyone else."""

    header: GroupHeader
    payload: Any
    """Handle of the ``RolloutGroup`` in the payload store."""


def num_needed(lease: Lease) -> int:
    """Completions that make the group."""
    return lease.sampling.num_samples - lease.surplus


def token_digest(completions: Sequence[Completion]) -> str:
    """Hex SHA-256 of all token ids (int32, little-endian), in order of index."""
    digest = hashlib.sha256()
    for completion in sorted(completions, key=lambda c: c.index):
        digest.update(completion.tokens.astype("<i4").tobytes())
    return digest.hexdigest()


def finished_group(
    lease: Lease, made: PartialGroup, engine: str, load: EngineLoad | None
) -> tuple[RolloutGroup, GroupHeader]:
    """The group of the samples that were finished first, and its header."""
    needed = num_needed(lease)
    chosen = sorted(made.completions[:needed], key=lambda completion: completion.index)
    completions = tuple(replace(one, index=index) for index, one in enumerate(chosen))
    group = RolloutGroup(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        prompt=lease.prompt,
        completions=completions,
        images=made.images,
    )
    header = GroupHeader(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        engine=engine,
        lengths=tuple(completion.num_sampled for completion in completions),
        min_version=min(int(c.token_versions.min()) for c in completions),
        max_version=max(int(c.token_versions.max()) for c in completions),
        sha256=token_digest(completions),
        generate_s=made.generate_s,
        load=load,
        stopped=tuple(sample.num_sampled for sample in made.samples[needed:]),
        told=sum(sample.tokens.size - sample.num_sampled for sample in made.samples),
    )
    return group, header


def partial_header(
    lease: Lease, made: PartialGroup, engine: str, cause: InterruptCause
) -> PartialHeader:
    """What the coordinator is told of a lease that was stopped."""
    return PartialHeader(
        key=lease.key,
        attempt=lease.attempt,
        fence=lease.fence,
        engine=engine,
        cause=cause,
        num_tokens=made.num_tokens,
        min_version=made.min_version,
        generate_s=made.generate_s,
    )
