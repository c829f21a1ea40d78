"""How likely given labels are as replies of a plain Hugging Face causal language model.

Owns the forward passes. Knows neither templates nor scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from safeladder.records import Tokens


class LabelReader:
    """Prices labels after prompts, one prompt at a time.

    A judge's prompts begin alike, so the keys and values of the beginning that two prompts in a
    row have in common are computed once.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None
        self._seen: Tokens = np.empty(0, dtype=np.int32)

    @torch.inference_mode()
    def price(self, prompt: Tokens, labels: Sequence[Tokens]) -> list[float]:
        """Natural log-prob of each label [T], all its tokens in order, right after ``prompt`` [P].
        No label is empty."""
        last = self._read(prompt)  # [V]
        rows, width = len(labels), max(label.size for label in labels)
        targets = torch.zeros(rows, width, dtype=torch.long)
        is_label = torch.zeros(rows, width)
        for row, label in enumerate(labels):
            targets[row, : label.size] = torch.from_numpy(label.astype(np.int64))
            is_label[row, : label.size] = 1
        total = last[targets[:, 0]]
        if width > 1:  # padding stands on the right, where no label token looks
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(rows)
            logits = self._model(input_ids=targets[:, :-1], past_key_values=cache).logits
            prices = logits.float().log_softmax(-1).gather(2, targets[:, 1:, None]).squeeze(2)
            total = total + (prices * is_label[:, 1:]).sum(1)
        return [float(price) for price in total]

    def _read(self, prompt: Tokens) -> torch.Tensor:
        """Log-probs [V] of the token after ``prompt``; its keys and values stay in the cache."""
        known = min(_shared(self._seen, prompt), prompt.size - 1)
        cache, self._cache = self._cache, None
        if cache is None or any(getattr(cache, "is_sliding", ())):  # a sliding cache forgets
            cache, known = None, 0
        elif known < self._seen.size:
            cache.crop(known - self._seen.size)  # as many tokens as stand behind
        ids = torch.from_numpy(prompt[known:].astype(np.int64))[None]
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache, self._seen = output.past_key_values, prompt
        found: torch.Tensor = output.logits[0, -1].float().log_softmax(-1)
        return found


def _shared(first: Tokens, second: Tokens) -> int:
    """Number of tokens that two sequences have in common at their beginning."""
    size = min(first.size, second.size)
    differs = np.flatnonzero(first[:size] != second[:size])
    return int(differs[0]) if differs.size else size
