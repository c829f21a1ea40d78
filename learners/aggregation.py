"""How token losses become one number: a fixed weight for each token, computed before any split.

loss = sum over all tokens of weight * token loss. Because the weights come from the whole batch,
ranks, micro-batches and packing can cut that sum anywhere without changing it or its gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from safeladder.records import Floats

Aggregation = Literal[
    "token-mean", "prompt-token-mean", "seq-mean-token-mean", "seq-mean-token-sum"
]


def token_weights(
    loss_masks: Sequence[Floats],
    groups: Sequence[Hashable],
    aggregation: Aggregation,
    max_tokens: int = 1,
) -> list[npt.NDArray[np.float64]]:
    """[T] loss mask of each sequence and its group key to the [T] weights.

    With |y| the trained tokens of a sequence, counting only sequences that have any:

    * ``token-mean``: 1 / all trained tokens (CPGD's code);
    * ``prompt-token-mean``: 1 / (groups * trained tokens of the group) (CPGD report, formula of J);
    * ``seq-mean-token-mean``: 1 / (sequences * |y|) (LightRFT, GRPO);
    * ``seq-mean-token-sum``: 1 / (sequences * max_tokens), a constant, so that the gradient of a
      token does not depend on how long its answer is (Dr. GRPO, arXiv 2503.20783; CANON).

    The weights sum to 1, under ``seq-mean-token-sum`` to mean |y| / max_tokens.

    Raises ``ValueError`` if lengths differ, a mask is not 0/1, or nothing is trained.
    """
    if len(loss_masks) != len(groups):
        raise ValueError(f"{len(loss_masks)} loss masks for {len(groups)} group keys")
    for mask in loss_masks:
        if mask.ndim != 1 or not np.isin(mask, (0, 1)).all():
            raise ValueError("a loss mask must be a [T] array of 0 and 1")
    lengths = [int(mask.sum()) for mask in loss_masks]
    if not any(lengths):
        raise ValueError("the batch has no trained token")
    group_tokens: Counter[Hashable] = Counter()
    for key, length in zip(groups, lengths, strict=True):
        group_tokens[key] += length
    total = sum(lengths)
    num_groups = sum(tokens > 0 for tokens in group_tokens.values())
    num_sequences = sum(length > 0 for length in lengths)

    def denominator(key: Hashable, length: int) -> int:
        if aggregation == "token-mean":
            return total
        if aggregation == "prompt-token-mean":
            return num_groups * group_tokens[key]
        if aggregation == "seq-mean-token-sum":
            return num_sequences * max_tokens
        return num_sequences * length

    return [
        mask.astype(np.float64) / max(denominator(key, length), 1)
        for mask, key, length in zip(loss_masks, groups, lengths, strict=True)
    ]
