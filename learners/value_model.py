"""A value model: one head for each principle on the last token of a chain's prefix, which says what
continuations from there earn (a principled value model).

The heads give logits v; a row's target is the logit of its Monte-Carlo return, clipped away from 0
and 1, and the loss is the mean of (v - target)^2 over all returns of a batch. A principle without a
return in a row is left out. Prefixes of one prompt share it in a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learners.deepspeed_engine import DeepspeedEngine
from learners.packing import PackedRow
from safeladder.records import Floats, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRow:
    """One prefix with its returns for K principles."""

    prompt_tokens: Tokens
    """[P]"""
    tokens: Tokens
    """[T + 1] the prefix, and one token more that is never read: packing asks for the state before
    it, which is that of the prefix's last token, or of the prompt's if the prefix is empty."""
    returns: Floats
    """[K] in [0, 1]"""
    known: Floats
    """[K] 1 where there is a return, else 0."""

    @property
    def loss_mask(self) -> Floats:
        """[T + 1] zeros, but for the last."""
        mask = np.zeros(self.tokens.shape, np.float32)
        mask[-1] = 1.0
        return mask


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """Prefixes that are trained together."""

    sequences: Sequence[ValueRow]
    clip: float
    bundles: None = None

    @property
    def weight(self) -> float:
        """Returns."""
        return float(sum(row.known.sum() for row in self.sequences))

    def loss(self, outputs: Tensor, row: PackedRow) -> tuple[Tensor, dict[str, float]]:
        """[N, K] logits to their share of the mean over returns."""
        own = [self.sequences[piece.sequence] for piece in row.pieces]
        returns = torch.from_numpy(np.stack([one.returns for one in own])).to(outputs)
        known = torch.from_numpy(np.stack([one.known for one in own])).to(outputs)
        targets = torch.logit(returns.clamp(self.clip, 1 - self.clip))
        loss = ((outputs - targets).square() * known).sum() / self.weight
        error = ((outputs.sigmoid() - returns).abs() * known).sum() / self.weight
        return loss, {"loss": loss.item(), "error": error.item()}


class ValueTask:
    """Prefixes and what they are worth."""

    figures = ("loss", "error")
    """``error`` is the mean distance between the predicted and the measured return."""

    def __init__(self, rows: Sequence[ValueRow], clip: float) -> None:
        self._rows, self._clip = rows, clip

    @property
    def num_rows(self) -> int:
        """All prefixes."""
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> ValueBatch:
        """These prefixes."""
        return ValueBatch([self._rows[row] for row in rows], self._clip)

    def outputs(self, engine: DeepspeedEngine, row: PackedRow) -> Tensor:
        """[N, K] logits."""
        return engine.values(row)
