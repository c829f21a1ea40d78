"""DPO + gamma * SFT on pairs of answers (arXiv 2501.04945, its released configuration)::

    L     = L_DPO + gamma * L_SFT, the mean over the pairs of a batch
    L_DPO = -log sigmoid(beta * ((log pi(yw|x) - log ref(yw|x)) - (log pi(yl|x) - log ref(yl|x))))
    L_SFT = -log pi(yw|x) / |yw|

Log-probs of an answer are summed in the first and averaged over its tokens in the second. The
reference is the policy that the stage starts from: it prices all pairs once, before the first step,
in the engine that trains, and is not kept. Both answers of a pair share the prompt in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from torch.nn.functional import logsigmoid

from learners.deepspeed_engine import DeepspeedEngine
from learners.disk import naming_the_disk
from learners.packing import PackedRow, pack
from learners.supervised import SftRow
from safeladder.config import PreferenceConfig
from safeladder.errors import NotResumableError
from safeladder.records import Tokens
from safeladder.whole_file import replace_file

Prices = npt.NDArray[np.float64]
PRICED_TOGETHER = 64
"""Pairs of one pass of the reference."""
FILE = "reference_logprobs.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """One pair as token ids, rendered through the chat template by the caller."""

    prompt_tokens: Tokens
    """[P]"""
    chosen: Tokens
    """[T] with its stop token, unless it was cut."""
    rejected: Tokens
    """[U] likewise."""

    @property
    def sequences(self) -> tuple[SftRow, SftRow]:
        """Chosen, rejected."""
        return (
            SftRow(prompt_tokens=self.prompt_tokens, tokens=self.chosen),
            SftRow(prompt_tokens=self.prompt_tokens, tokens=self.rejected),
        )


def pair_losses(
    chosen: Tensor, rejected: Tensor, reference: Tensor, length: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[n] DPO losses, SFT losses and margins of n pairs. ``chosen`` and ``rejected``: [n] summed
    log-probs of the policy; ``reference``: [n, 2] those of the reference, chosen first; ``length``:
    [n] tokens of the chosen answers."""
    margin = beta * ((chosen - reference[:, 0]) - (rejected - reference[:, 1]))
    return -logsigmoid(margin), -chosen / length, margin


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """Pairs that are trained together."""

    pairs: Sequence[PreferenceRow]
    reference: Prices
    """[n, 2]"""
    settings: PreferenceConfig

    @property
    def sequences(self) -> list[SftRow]:
        """Chosen and rejected of each pair, one after the other."""
        return [sequence for pair in self.pairs for sequence in pair.sequences]

    @property
    def bundles(self) -> list[list[int]]:
        """A pair lies in one row."""
        return [[2 * index, 2 * index + 1] for index in range(len(self.pairs))]

    @property
    def weight(self) -> float:
        """Pairs."""
        return float(len(self.pairs))

    def loss(self, outputs: Tensor, row: PackedRow) -> tuple[Tensor, dict[str, float]]:
        """[N] log-probs to their share of the mean over pairs."""
        sums = summed(outputs, row)
        indexes = [piece.sequence // 2 for piece in row.pieces[::2]]
        lengths = [float(piece.trained.size) for piece in row.pieces[::2]]
        reference = torch.from_numpy(self.reference[indexes]).to(sums)
        chosen, rejected = sums[::2], sums[1::2]
        dpo, sft, margin = pair_losses(
            chosen, rejected, reference, torch.tensor(lengths).to(sums), self.settings.beta
        )
        loss = (dpo + self.settings.gamma * sft).sum() / self.weight
        own = {
            "loss": loss,
            "dpo_loss": dpo.sum() / self.weight,
            "sft_loss": sft.sum() / self.weight,
            "accuracy": (margin > 0).sum() / self.weight,
            "margin": margin.sum() / self.weight,
            "chosen_logprob": chosen.sum() / self.weight,
            "rejected_logprob": rejected.sum() / self.weight,
        }
        return loss, {name: value.item() for name, value in own.items()}


class PreferenceTask:
    """Pairs, priced by the reference."""

    figures = (
        "loss", "dpo_loss", "sft_loss", "accuracy", "margin", "chosen_logprob", "rejected_logprob",
    )  # fmt: skip

    def __init__(
        self, rows: Sequence[PreferenceRow], reference: Prices, settings: PreferenceConfig
    ) -> None:
        """``reference``: [rows, 2] summed log-probs of the reference."""
        self._rows, self._reference, self._settings = rows, reference, settings

    @property
    def num_rows(self) -> int:
        """All pairs."""
        return len(self._rows)

    def batch(self, rows: Sequence[int]) -> PreferenceBatch:
        """These pairs."""
        pairs = [self._rows[row] for row in rows]
        return PreferenceBatch(pairs, self._reference[list(rows)], self._settings)

    def outputs(self, engine: DeepspeedEngine, row: PackedRow) -> Tensor:
        """[N] log-probs."""
        return engine.logprobs(row)


def summed(outputs: Tensor, row: PackedRow) -> Tensor:
    """[N] log-probs to their sum for each piece of the row."""
    parts = torch.split(outputs, [piece.trained.size for piece in row.pieces])
    return torch.stack([part.sum() for part in parts])


def price(engine: DeepspeedEngine, rows: Sequence[PreferenceRow], budget: int) -> Prices:
    """[rows, 2] summed log-probs of chosen and rejected by the policy as it is, on every rank.
    *Collective.*"""
    prices = np.zeros((len(rows), 2), np.float64)
    for start in range(0, len(rows), PRICED_TOGETHER):
        pairs = rows[start : start + PRICED_TOGETHER]
        sequences = [sequence for pair in pairs for sequence in pair.sequences]
        own = dict.fromkeys(map(str, range(len(sequences))), 0.0)
        for row in pack(sequences, ranks=engine.world_size, budget=budget)[engine.rank]:
            with torch.no_grad():
                outputs = engine.logprobs(row)
            if row.pieces:
                found = summed(outputs, row).tolist()
                pieces = zip(row.pieces, found, strict=True)
                own |= {str(piece.sequence): value for piece, value in pieces}
        totals = engine.reduce(own, "sum")
        prices[start : start + len(pairs)] = np.reshape(list(totals.values()), (-1, 2))
    return prices


def share(engine: DeepspeedEngine, prices: Prices | None, num_rows: int) -> Prices:
    """What rank 0 has, on every rank. *Collective.*"""
    flat = np.zeros(2 * num_rows) if prices is None else prices.reshape(-1)
    values = {str(index): float(value) for index, value in enumerate(flat)}
    return np.reshape(list(engine.reduce(values, "sum").values()), (-1, 2))


def write_prices(folder: Path, prices: Prices) -> None:
    """Keep them in the folder of the run: a resumed learner has other weights."""
    with naming_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / FILE, [save({"reference": prices})])


def read_prices(folder: Path, num_rows: int) -> Prices:
    """What was kept. Raises ``NotResumableError`` if it is not there, or of other rows."""
    try:
        prices: Prices = load_file(folder / FILE)["reference"]
    except (OSError, SafetensorError, KeyError) as error:
        raise NotResumableError(
            f"{folder / FILE}, in which the reference priced the pairs, cannot be read ({error}); "
            "the policy that made it is not here any more: start another run"
        ) from None
    if prices.shape != (num_rows, 2):
        raise NotResumableError(
            f"{folder / FILE} has prices of shape {prices.shape}, for {num_rows} pairs"
        )
    return prices
