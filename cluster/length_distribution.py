"""How long responses are: a distribution to draw from and to plan on.

Lengths are tokens ≥ 1 up to a cap, at which generation stops.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Protocol

_NORMAL = NormalDist()


class Lengths(Protocol):
    """Lengths of responses."""

    @property
    def mean(self) -> float:
        """Tokens."""
        ...

    def draw(self, rng: random.Random) -> int:
        """One length."""
        ...

    def quantile(self, share: float) -> float:
        """The length that this share, in (0, 1), does not exceed."""
        ...

    def __hash__(self) -> int:
        """What follows from a distribution is kept by it."""
        ...


def longest_of(lengths: Lengths, count: int) -> float:
    """The longest of ``count`` responses, as its median."""
    return lengths.quantile(0.5 ** (1 / count))


@dataclass(frozen=True)
class LogNormalLengths:
    """Log-normal, cut at ``cap``: the usual shape of reasoning, with a few responses many times as
    long as the mean. ``mean`` counts after the cut."""

    mean: float
    cap: int
    sigma: float = 0.8
    """Of the logarithm: at 0.6 the longest of 10,000 is some 8 times the mean, at 1 some 25."""

    def __post_init__(self) -> None:
        if not 1 <= self.mean < self.cap:
            raise ValueError(f"a mean of {self.mean} tokens must be from 1 to below {self.cap}")
        if not 0 < self.sigma <= 3:
            raise ValueError(f"sigma is in (0, 3], not {self.sigma}")

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return max(1, min(self.cap, round(rng.lognormvariate(self._mu, self.sigma))))

    def quantile(self, share: float) -> float:
        """Of the cut distribution."""
        return min(self.cap, math.exp(self._mu + self.sigma * _NORMAL.inv_cdf(share)))

    @cached_property
    def _mu(self) -> float:
        """By bisection, so that the mean after the cut is ``mean``."""
        low, high = -(self.sigma**2), math.log(self.cap) + 6 * self.sigma
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cut_mean(middle) < self.mean else (low, middle)
        return low

    def _cut_mean(self, mu: float) -> float:
        """E[min(X, cap)] of a log-normal X."""
        z = (math.log(self.cap) - mu) / self.sigma
        below = math.exp(mu + self.sigma**2 / 2) * _NORMAL.cdf(z - self.sigma)
        return below + self.cap * (1 - _NORMAL.cdf(z))


class MeasuredLengths:
    """Lengths as an earlier run had them, drawn again with equal chance."""

    def __init__(self, lengths: Sequence[int]) -> None:
        if not lengths or min(lengths) < 1:
            raise ValueError("lengths are one or more numbers of tokens ≥ 1")
        self._lengths = sorted(lengths)

    @property
    def mean(self) -> float:
        """Tokens."""
        return sum(self._lengths) / len(self._lengths)

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return rng.choice(self._lengths)

    def quantile(self, share: float) -> float:
        """Nearest rank."""
        return self._lengths[min(int(share * len(self._lengths)), len(self._lengths) - 1)]
