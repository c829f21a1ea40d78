"""Versions for ``benchmarks.weights``: SmolLM2-135M trained by AdamW on real answers.

Masters are float32 and what is published is bfloat16, as on GPUs. Forward and backward run in
float32, because bfloat16 matrix products are slow on a CPU; gradients are a little more exact for
it, and what is rounded for publication is the same kind of master.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cluster.supervised import supervised_rows
from learners.safetensors_stream import Slot
from learners.supervised import SftRow
from safeladder.config import Config


class RoundedPolicy:
    """What a publisher sees of a learner with bfloat16 weights and float32 masters."""

    rank = 0

    def __init__(self, config: Config) -> None:
        assert config.sft is not None
        learner = config.learner
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            config.model.path, dtype=torch.float32, local_files_only=True
        )
        self._adam = torch.optim.AdamW(
            self._model.parameters(), learner.lr, learner.betas, weight_decay=learner.weight_decay
        )
        self._max_grad_norm = learner.max_grad_norm
        self._batches = _batches(supervised_rows(config), config.sft.batch_size)

    def step(self) -> float:
        """One optimizer step on the next batch; returns the loss."""
        batch = next(self._batches)
        loss: torch.Tensor = self._model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_grad_norm)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return loss.item()

    def weight_slots(self, *, only_trained: bool) -> dict[str, Slot]:
        """As of ``DeepspeedEngine``."""
        named = self._model.named_parameters()
        return {name: Slot("bfloat16", tuple(weight.shape)) for name, weight in named}

    def weights(self, *, only_trained: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """As of ``DeepspeedEngine``."""
        for name, weight in self._model.named_parameters():
            yield name, weight.detach().bfloat16()


def _batches(rows: Sequence[SftRow], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches in file order, again and again; -100 is not trained."""
    while True:
        for start in range(0, len(rows) - size + 1, size):
            batch = rows[start : start + size]
            longest = max(row.prompt_tokens.size + row.tokens.size for row in batch)
            ids = torch.zeros(size, longest, dtype=torch.long)
            labels = torch.full((size, longest), -100)
            for i, row in enumerate(batch):
                first, end = row.prompt_tokens.size, row.prompt_tokens.size + row.tokens.size
                ids[i, :first] = torch.from_numpy(row.prompt_tokens)
                ids[i, first:end] = torch.from_numpy(row.tokens)
                labels[i, first:end] = ids[i, first:end]
            yield {"input_ids": ids, "labels": labels}
