"""What attacks came to: one line of a table of attacks. All corpora report in this form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """All attempts of one class of attack."""

    kind: str
    tried: int
    held: int
    """Attempts that were refused or contained."""
    told: str = ""
    """What came of it, in words, where a class has one attempt."""

    @property
    def is_contained(self) -> bool:
        return self.held == self.tried


def tally(results: Iterable[tuple[str, bool]]) -> list[Outcome]:
    """(class, was refused) of each attempt to one line for each class, in order of appearance."""
    tried: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for kind, was_refused in results:
        tried[kind] += 1
        held[kind] += was_refused
    return [Outcome(kind, tried[kind], held[kind]) for kind in tried]
