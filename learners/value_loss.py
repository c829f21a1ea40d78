"""The loss of a value head: [N] values in, [N] losses out. Pure torch; no averaging, no model."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.divergences import check_rank_one


def value_loss(
    values: Tensor, values_before: Tensor, returns: Tensor, clip: float | None
) -> Tensor:
    """max((V - G)^2, (clip(V, V_before - c, V_before + c) - G)^2) / 2, or (V - G)^2 / 2 without c.

    The maximum takes the gradient from a value that has come further than c in this step towards
    its target G, and keeps it where the value has gone astray. PPO's released code; OpenRLHF.
    """
    check_rank_one(values=values, values_before=values_before, returns=returns)
    plain = (values - returns).square()
    if clip is None:
        return plain / 2
    near = values_before + (values - values_before).clamp(-clip, clip)
    return torch.maximum(plain, (near - returns).square()) / 2
