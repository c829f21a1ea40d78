"""A value model's rows and loss: by hand, and packed as one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learners.packing import pack
from learners.value_model import ValueBatch, ValueRow, ValueTask


def row(prefix: list[int], returns: list[float | None]) -> ValueRow:
    return ValueRow(
        prompt_tokens=np.array([3, 4], np.int32),
        tokens=np.array([*prefix, 0], np.int32),
        returns=np.array([0.0 if r is None else r for r in returns], np.float32),
        known=np.array([r is not None for r in returns], np.float32),
    )


def test_what_is_asked_for_is_the_state_of_the_prefixs_last_token() -> None:
    rows = [row([5, 6], [0.5]), row([], [0.5]), row([7], [0.5])]
    ((packed,),) = pack(rows, ranks=1, budget=32)
    wanted = dict(zip([p.sequence for p in packed.pieces], packed.logit_index, strict=True))
    assert [int(packed.tokens[wanted[i]]) for i in range(3)] == [6, 4, 7]
    assert packed.tokens.tolist() == [3, 4, 5, 6, 7]


def test_the_loss_is_the_squared_error_between_logits_over_known_returns() -> None:
    rows = [row([5], [0.75, None]), row([6], [1.0, 0.5])]
    batch = ValueBatch(rows, clip=0.1)
    ((packed,),) = pack(rows, ranks=1, budget=32)
    outputs = torch.tensor([[1.0, 9.0], [2.0, -1.0]], requires_grad=True)
    loss, figures = batch.loss(outputs, packed)
    # logit(0.75) = log 3; logit(0.9) = log 9, since 1 is clipped; logit(0.5) = 0
    expected = ((1 - math.log(3)) ** 2 + (2 - math.log(9)) ** 2 + 1) / 3
    assert (batch.weight, loss.item()) == (3.0, pytest.approx(expected, abs=1e-6))
    sigmoids = [1 / (1 + math.exp(-v)) for v in (1.0, 2.0, -1.0)]
    distances = [abs(s - r) for s, r in zip(sigmoids, (0.75, 1.0, 0.5), strict=True)]
    assert figures["error"] == pytest.approx(sum(distances) / 3, abs=1e-6)
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad[0, 1] == 0


def test_a_batch_counts_for_its_returns() -> None:
    task = ValueTask([row([5], [0.5, None]), row([6], [0.1, 0.2])], clip=0.05)
    assert [task.batch([0]).weight, task.batch([1]).weight, task.batch([0, 1]).weight] == [1, 2, 3]
