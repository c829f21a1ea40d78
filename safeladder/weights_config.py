"""``weights``: how a version travels from the learner to the engines."""

from __future__ import annotations

from typing import Literal

from safeladder.config_section import Flag, PositiveFloat, PositiveInt, Section

MIB = 2**20


class WeightsConfig(Section):
    """How a version travels from the learner to the engines."""

    transport: Literal["object_store", "nccl", "ipc"] = "object_store"
    """``object_store`` works everywhere. ``nccl`` and ``ipc`` go from GPU to GPU through vLLM's own
    engines, ``ipc`` where learner and engine share one GPU; neither has been run yet."""
    transfer_deadline_s: PositiveFloat = 120.0
    """Longest transfer of a version to one engine by ``nccl`` or ``ipc``; an engine that takes
    longer is replaced."""
    chunk_mib: PositiveInt = 128
    """A version is stored, and handed to an engine, in pieces of at most this size; a larger tensor
    is a piece of its own. Small enough that a piece more or less in memory does not count; half of
    it costs a tenth of the speed, for each piece is a few messages of Ray."""

    delta: Flag = False
    """Also publish what changed since the version before, without loss, for engines that hold that
    one; saves the wire between nodes where weights are bfloat16. Costs a host copy of the trained
    weights in each rollout actor, and one version more in the object store."""

    @property
    def chunk_bytes(self) -> int:
        """``chunk_mib`` in bytes."""
        return self.chunk_mib * MIB
