"""Shares kept exactly: which of several kinds comes next.

Tijdeman's rule for the chairman assignment problem (Discrete Mathematics 32, 1980): after n draws
every kind has had its share times n, give or take less than one. No chance is involved, so the
counts so far are all there is to remember.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction


class Quotas:
    """Shares by name; they are made to add up to 1."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        total = sum(Fraction(repr(share)) for share in shares.values())
        self._shares = {
            name: Fraction(repr(share)) / total for name, share in sorted(shares.items()) if share
        }
        num = len(self._shares)
        self._slack = Fraction(1, 2 * num - 2) if num > 1 else Fraction(0)

    def next(self, counts: Mapping[str, int]) -> str:
        """The kind of the next draw after so many draws of each."""
        number = 1 + sum(counts.get(name, 0) for name in self._shares)
        due = {
            name: (counts.get(name, 0) + 1 - self._slack) / share
            for name, share in self._shares.items()
            if share * number - counts.get(name, 0) >= self._slack
        }
        return min(due, key=lambda name: due[name])
