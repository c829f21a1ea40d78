"""Rewards in, advantages out: how much better a completion is than its siblings.

Pure numpy, on the whole batch at once. Statistics belong to the group key, never to the rows of a
micro-batch, so they cannot depend on how the batch is split. Knows no tokens and no model; what
depends on lengths stands in ``length_conditioned``, what depends on single tokens in ``returns``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

GroupWeight = Literal["equal", "std", "clip_filter"]
Baseline = Literal["group_mean", "leave_one_out"]

STD_FLOOR = 1e-9
"""Added to the standard deviation (CPGD's value); only keeps the division defined."""


def compute_advantages(
    rewards: npt.ArrayLike,
    groups: Sequence[Hashable],
    *,
    baseline: Baseline = "group_mean",
    weight: GroupWeight = "std",
    weight_cap: float = 3.0,
) -> npt.NDArray[np.float64]:
    """A = w(x) * (R - baseline): [N] rewards and [N] group keys to [N] advantages.

    The baseline is the mean of the group, or with ``leave_one_out`` the mean of the *other* samples
    (RLOO, arXiv 2402.14740), which is n / (n - 1) times as far from R.

    Group weights of the CPGD report (arXiv 2505.12504):

    * ``equal``: 1;
    * ``std``: 1 / (std + 1e-9) with the population standard deviation (divided by n, not n - 1);
      this is GRPO's advantage;
    * ``clip_filter``: min(weight_cap, groups / groups whose rewards differ), the same number for
      every group whose rewards differ, else 1.

    A group with equal rewards, and so a lone sample, gets exactly 0. Raises ``ValueError`` if
    lengths differ or a reward is not finite.

    >>> compute_advantages([1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b"], weight="equal").tolist()
    [0.5, -0.5, 0.5, -0.5]
    """
    values = checked_rewards(rewards, groups)
    members = rows_by_group(groups)
    varied = [rows for rows in members.values() if np.ptp(values[rows]) > 0]
    shared = min(weight_cap, len(members) / len(varied)) if varied else 1.0
    advantages = np.zeros_like(values)
    for rows in varied:
        own = values[rows]
        centered = own - own.mean()
        if baseline == "leave_one_out":
            centered *= len(rows) / (len(rows) - 1)
        if weight == "std":
            centered /= own.std() + STD_FLOOR
        elif weight == "clip_filter":
            centered *= shared
        advantages[rows] = centered
    return advantages


def checked_rewards(rewards: npt.ArrayLike, groups: Sequence[Hashable]) -> npt.NDArray[np.float64]:
    """[N] rewards as float64. Raises ``ValueError`` unless there is one, and finite, for each."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (len(groups),):
        raise ValueError(f"rewards of shape {values.shape} for {len(groups)} group keys")
    if not np.isfinite(values).all():
        raise ValueError(f"a reward is not finite: {values[~np.isfinite(values)][0]}")
    return values


def rows_by_group(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Group key → its rows, in order."""
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(groups):
        members.setdefault(key, []).append(index)
    return members
