"""The panel: the principles that are in force, and the fleet that judges each of them.

A run begins with generation 0; a hot swap puts a new panel in the place of the old one. A group is
scored by the panel that was in force when its scoring began, to the end, so that no group is judged
by a mixture. A principle whose settings stay the same keeps its fleet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from safeladder.config import Config


def verifier_fleet(principle: str, generation: int = 0) -> str:
    """Name of the fleet that judges a principle since the panel of that generation."""
    return f"verifier:{principle}" + (f"@{generation}" if generation else "")


@dataclass(frozen=True, slots=True)
class Panel:
    """Who judges what."""

    generation: int
    config: Config
    """Read for ``principles`` (services with their addresses), ``routes`` and ``reward`` only."""
    fleets: Mapping[str, str]
    """Principle → fleet."""

    @classmethod
    def first(cls, config: Config) -> Panel:
        """The panel that a driver starts with."""
        return cls(0, config, {name: verifier_fleet(name) for name in config.principles})

    def changed(self, config: Config, kept: Collection[str]) -> Panel:
        """The next panel. Principles in ``kept`` keep their settings and their fleet; the others
        are judged by new fleets."""
        generation = self.generation + 1
        settings = {
            name: self.config.principles[name] if name in kept else wanted
            for name, wanted in config.principles.items()
        }
        fleets = {
            name: self.fleets[name] if name in kept else verifier_fleet(name, generation)
            for name in settings
        }
        return Panel(generation, config.model_copy(update={"principles": settings}), fleets)
