"""How sure a number is: bootstrap intervals for paired outcomes, Wilson's for a share. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def paired_bootstrap(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile interval of ``mean(after - before)`` (Efron 1979): pairs are drawn with
    replacement, so that what makes a prompt hard stays on both sides.

    ``before`` and ``after`` are [N], outcome i of both from the same prompt. If all pairs differ by
    the same amount the interval is that point. Raises ``ValueError`` on other shapes, on N = 0 and
    on outcomes that are not finite.

    >>> paired_bootstrap([0, 0, 0, 0], [1, 1, 1, 1], np.random.default_rng(0))
    (1.0, 1.0)
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"pairs must be two [N] arrays, N >= 1: {first.shape} and {second.shape}")
    difference = second - first  # [N]
    if not np.isfinite(difference).all():
        raise ValueError("an outcome is not finite")
    drawn = rng.integers(0, difference.size, (resamples, difference.size))
    means = difference[drawn].mean(axis=1)  # [resamples]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): sound for few trials and near 0 and 1.

    Raises ``ValueError`` unless 0 <= successes <= trials and trials >= 1.

    >>> tuple(round(bound, 4) for bound in wilson(8, 10))
    (0.4902, 0.9433)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    center = share + z * z / (2 * trials)
    width = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - width) / scale), min(1.0, (center + width) / scale)
