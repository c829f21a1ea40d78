"""``weights``: how a version travels from the learner to the engines."""

from __future__ import annotations

from safeladder.config_section import PositiveInt, Section

MIB = 2**20


class WeightsConfig(Section):
    """How a version travels from the learner to the engines."""

    chunk_mib: PositiveInt = 64
    """A version is stored, and handed to an engine, in pieces of at most this size; a larger tensor
    is a piece of its own. Small enough that a piece more or less in memory does not count, large
    enough that a model is not thousands of objects."""

    @property
    def chunk_bytes(self) -> int:
        """``chunk_mib`` in bytes."""
        return self.chunk_mib * MIB
