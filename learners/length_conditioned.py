"""What the length of an answer does to its reward or its advantage: CANON, and DAPO's soft penalty.

Pure numpy, on the whole batch at once; lengths count trained tokens. Knows no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from learners.advantages import checked_rewards, rows_by_group


def canon_advantages(
    rewards: npt.ArrayLike,
    groups: Sequence[Hashable],
    lengths: npt.ArrayLike,
    truncated: Sequence[bool],
    *,
    mu: float,
    alpha: float,
) -> npt.NDArray[np.float64]:
    """[N] rewards, group keys, lengths and cut-off marks to [N] advantages.

    Each group is split by length at n // 2 into a short half S and a long half L, with means m_S
    and m_L (CANON, arXiv 2509.23962, which CALE is built as)::

        y in L:  A = mu * (alpha * R - m_S) + (1 - mu) * (R - m_L)
        y in S:  A = mu * (R - alpha * m_L) + (1 - mu) * (R - m_S)

    mu compares the halves, 1 - mu compares within them; alpha < 1 handicaps the long half without a
    penalty in R. The published formula divides by the response limit: here that constant is in the
    token weight ``seq-mean-token-sum``. The odd sample goes to L; of equal lengths the earlier row
    is the shorter; an answer that was cut off counts as longer than any that was not. A group of
    one length, all cut off or none, gets R less its mean, and a lone sample its whole R (baseline
    0, as in the released code).

    With negative rewards alpha would favor the long half: raises ``ValueError`` for one, and as
    ``compute_advantages``.
    """
    values = checked_rewards(rewards, groups)
    sizes = np.asarray(lengths)
    if sizes.shape != values.shape or len(truncated) != len(values):
        raise ValueError(f"{sizes.shape} lengths and {len(truncated)} marks for {len(values)}")
    if (values < 0).any():
        raise ValueError(
            f"advantage: canon needs rewards that are not negative, one is {values.min():g}; "
            "use reward.combine: additive without floors, or another advantage"
        )
    advantages = np.zeros_like(values)
    for rows in rows_by_group(groups).values():
        own = values[rows]
        order = sorted(range(len(rows)), key=lambda i: (truncated[rows[i]], sizes[rows[i]]))
        places = {(truncated[row], int(sizes[row])) for row in rows}
        if len(rows) == 1:
            advantages[rows] = own
        elif len(places) == 1:
            advantages[rows] = own - own.mean()
        else:
            short, long = order[: len(rows) // 2], order[len(rows) // 2 :]
            mean_short, mean_long = own[short].mean(), own[long].mean()
            found = np.empty_like(own)
            found[long] = mu * (alpha * own[long] - mean_short) + (1 - mu) * (own[long] - mean_long)
            found[short] = mu * (own[short] - alpha * mean_long) + (1 - mu) * (
                own[short] - mean_short
            )
            advantages[rows] = found
    return advantages


def overlong_penalties(
    lengths: npt.ArrayLike, *, limit: int, buffer: int, factor: float
) -> npt.NDArray[np.float64]:
    """min(0, -(length - (limit - buffer)) / buffer * factor): [N] lengths to [N] penalties, 0 up to
    limit - buffer, and ``-factor`` at the limit and beyond (DAPO, arXiv 2503.14476, equation 13).

    >>> overlong_penalties([6, 8, 9, 10], limit=10, buffer=2, factor=0.5).tolist()
    [0.0, 0.0, -0.25, -0.5]
    """
    excess = np.asarray(lengths, dtype=np.float64) - (limit - buffer)
    return -np.clip(excess, 0, buffer) / buffer * factor + 0.0
