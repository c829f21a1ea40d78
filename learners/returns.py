"""Advantages of single tokens: KL costs in the return, GAE over a value head, z-scores of a batch.

Pure numpy on [T] arrays of one answer's *trained* tokens: a tool's tokens are no action of the
policy, so what it does next follows on what it did before them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

VARIANCE_FLOOR = 1e-8
"""OpenRLHF's; keeps the z-score of equal advantages defined."""


def cost_to_go(costs: npt.ArrayLike) -> Array:
    """[T] costs to [T] sums over the token and all later ones: G_i = R - sum of costs from i on
    has the KL to the reference inside the return (REINFORCE++, arXiv 2501.03262).

    >>> cost_to_go([1.0, 2.0, 4.0]).tolist()
    [7.0, 6.0, 4.0]
    """
    return np.cumsum(np.asarray(costs, dtype=np.float64)[::-1])[::-1]


def generalized_advantages(
    rewards: npt.ArrayLike, values: npt.ArrayLike, *, gamma: float, gae_lambda: float
) -> tuple[Array, Array]:
    """[T] rewards and [T] values of the states before each token to [T] advantages and returns::

        delta_t = r_t + gamma * V_(t+1) - V_t,     V = 0 after the last token
        A_t     = delta_t + gamma * lambda * A_(t+1),     G_t = A_t + V_t

    GAE, arXiv 1506.02438. Raises ``ValueError`` if lengths differ.

    >>> [x.tolist() for x in generalized_advantages([0, 1], [0.5, 0.5], gamma=1, gae_lambda=1)]
    [[0.5, 0.5], [1.0, 1.0]]
    """
    r, v = np.asarray(rewards, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if r.shape != v.shape or r.ndim != 1:
        raise ValueError(f"rewards of shape {r.shape} for values of shape {v.shape}")
    deltas = r + gamma * np.append(v[1:], 0.0)[: len(v)] - v
    advantages = np.zeros_like(v)
    later = 0.0
    for t in reversed(range(len(v))):
        later = deltas[t] + gamma * gae_lambda * later
        advantages[t] = later
    return advantages, advantages + v


def moments(advantages: Sequence[Array], mean: float = 0.0) -> tuple[float, float, float]:
    """Count, sum and sum of squared distances to ``mean``, over all tokens of all answers."""
    flat = np.concatenate([np.zeros(0), *advantages])
    return float(flat.size), float(flat.sum()), float(np.square(flat - mean).sum())


def z_scores(advantages: Sequence[Array], mean: float, variance: float) -> list[Array]:
    """(A - mean) / std of each token, mean and population variance being those of the batch."""
    scale = max(variance, VARIANCE_FLOOR) ** -0.5
    return [(one - mean) * scale for one in advantages]
