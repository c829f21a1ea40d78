"""Attention of a packed row: each prompt to itself, each completion to its prompt and to itself.

Computed span by span, so that nothing is spent on pairs of tokens that do not see each other: the
cost is that of the sequences alone, less the prompts that siblings share, and no [L, L] mask
exists. It stands in transformers' registry of attention functions as ``packed``, and gets the row's
spans as a keyword argument of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import AttentionInterface

from learners.packing import Span
from safeladder.errors import EnvironmentUnfitError

NAME = "packed"


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Sequence[Span],
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """[1, heads, L, D] queries and [1, key heads, L, D] keys and values to [1, L, heads, D].

    Raises ``EnvironmentUnfitError`` for what a layer asks beyond that (a window shorter than a
    sequence, a cap on scores, sinks): leaving it out would give other log-probs, without a word.
    """
    if softcap is not None or s_aux is not None:
        raise EnvironmentUnfitError(
            "this model caps attention scores or has sinks; packed rows "
            "know neither, so it cannot be trained"
        )
    longest = max(
        s.length + (0 if s.prompt == i else spans[s.prompt].length) for i, s in enumerate(spans)
    )
    if sliding_window is not None and longest > sliding_window:
        raise EnvironmentUnfitError(
            f"a sequence of {longest} tokens is longer than the model's attention window of "
            f"{sliding_window}; lower rollout.max_prompt_tokens or max_new_tokens"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    lengths = [span.length for span in spans]
    queries, keys, values = (torch.split(t, lengths, dim=2) for t in (query, key, value))
    outputs = []
    for index, (length, prompt) in enumerate(spans):
        own = (queries[index], keys[index], values[index])
        if prompt == index:
            outputs.append(attend(*own, is_causal=True, scale=scaling))
            continue
        seen = torch.cat([keys[prompt], own[1]], dim=2)
        content = torch.cat([values[prompt], own[2]], dim=2)
        before = lengths[prompt]
        allowed = torch.ones(length, before + length, dtype=torch.bool, device=query.device)
        outputs.append(attend(own[0], seen, content, attn_mask=allowed.tril(before), scale=scaling))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make ``attn_implementation="packed"`` known; a second call does nothing."""
    AttentionInterface.register(NAME, packed_attention)
