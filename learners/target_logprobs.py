"""Log-probs of given tokens from logits, holding the [N, V] logits once instead of three times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _TargetLogprobs(torch.autograd.Function):
    """``log_softmax`` and ``gather`` in one: neither the log-probs of the other tokens nor their
    gradient get a tensor of their own. Backward writes into the logits, so it can run once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        normalizer = logits.logsumexp(dim=-1)
        ctx.save_for_backward(logits, normalizer, targets)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [gradient] = gradients
        logits, normalizer, targets = ctx.saved_tensors
        probabilities = logits.sub_(normalizer[:, None]).exp_()
        slope = probabilities.mul_(-gradient[:, None])
        return slope.scatter_add_(-1, targets[:, None], gradient[:, None]), None


def target_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """[N, V] float32 logits, which the caller must not use any more, and [N] ids to [N] log-probs.

    The gradient with respect to the logits is g * (onehot(target) - softmax(logits)).
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"want [N, V] and [N], got {tuple(logits.shape)}, {tuple(targets.shape)}")
    result: Tensor = _TargetLogprobs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return result
