"""What an attack came to: one line of a table of attacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Outcome(NamedTuple):
    """All attempts of one class of attack."""

    kind: str
    tried: int
    refused: int


def tally(results: Iterable[tuple[str, bool]]) -> list[Outcome]:
    """(class, was refused) of each attempt to one line for each class, in order of appearance."""
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for kind, was_refused in results:
        tried[kind] += 1
        refused[kind] += was_refused
    return [Outcome(kind, tried[kind], refused[kind]) for kind in tried]
