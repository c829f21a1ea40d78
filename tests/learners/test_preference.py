"""DPO + gamma * SFT: by hand, against a slow loop, and on an engine that is a table of logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from learners.packing import pack
from learners.preference import (
    PreferenceBatch,
    PreferenceRow,
    PreferenceTask,
    pair_losses,
    price,
    read_prices,
    share,
    write_prices,
)
from learners.row_plan import RowPlan
from learners.stage import StageTrainer, accumulate
from safeladder.config import PreferenceConfig
from safeladder.errors import NotResumableError
from tests.learners.test_policy_update import VOCABULARY, TableEngine


def settings(**changes: Any) -> PreferenceConfig:
    preference = {"data": (Path("pairs.jsonl"),), "lr": 0.3, "batch_size": 3, **changes}
    return PreferenceConfig(**preference)


def pairs(count: int = 5) -> list[PreferenceRow]:
    random = np.random.default_rng(8)

    def answer(length: int) -> Any:
        return random.integers(0, VOCABULARY, length).astype(np.int32)

    return [
        PreferenceRow(
            prompt_tokens=np.array([1, 2, index % 2], np.int32),
            chosen=answer(1 + index % 3),
            rejected=answer(2 + index % 2),
        )
        for index in range(count)
    ]


def plain_loss(logits: Tensor, rows: list[PreferenceRow], start: Tensor, gamma: float) -> Tensor:
    """The formula, pair after pair and token after token."""
    beta, losses = 0.1, []
    policy, reference = logits.log_softmax(-1), start.log_softmax(-1)
    for row in rows:
        ratios = []
        for answer in (row.chosen, row.rejected):
            own = sum((policy[int(t)] for t in answer), torch.zeros(()))
            frozen = sum((reference[int(t)] for t in answer), torch.zeros(()))
            ratios.append(own - frozen)
        dpo = -logsigmoid(beta * (ratios[0] - ratios[1]))
        mean = sum((policy[int(t)] for t in row.chosen), torch.zeros(())) / row.chosen.size
        losses.append(dpo - gamma * mean)
    return torch.stack(losses).mean()


def moved_engine() -> tuple[TableEngine, Tensor]:
    """An engine whose policy is no longer the reference, and the reference's logits."""
    engine = TableEngine()
    start = engine.logits.detach().clone()
    with torch.no_grad():
        engine.logits += torch.linspace(-1, 1, VOCABULARY)
    return engine, start


def test_a_pair_by_hand() -> None:
    dpo, sft, margin = pair_losses(
        torch.tensor([-6.0]), torch.tensor([-9.0]), torch.tensor([[-7.0, -8.0]]),
        torch.tensor([3.0]), 0.5,
    )  # fmt: skip
    # 0.5 * ((-6 + 7) - (-9 + 8)) = 1; log(1 + e^-1) = 0.313262; 6 / 3 = 2
    assert (margin.item(), sft.item()) == (1.0, 2.0)
    assert dpo.item() == pytest.approx(0.313262, abs=1e-6)


def test_log_probs_are_summed_in_dpo_and_averaged_in_sft() -> None:
    """Twice the answer at twice the log-prob: DPO sees twice the ratio, SFT the same mean."""
    reference = torch.zeros(1, 2)
    rejected = torch.tensor([-3.0])
    once = pair_losses(torch.tensor([-2.0]), rejected, reference, torch.tensor([2.0]), 0.1)
    twice = pair_losses(torch.tensor([-4.0]), rejected, reference, torch.tensor([4.0]), 0.1)
    assert once[1] == twice[1] == 1.0
    assert (once[2].item(), twice[2].item()) == pytest.approx((0.1, -0.1))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("budget", [9, 64])
def test_a_batch_is_the_formula_however_it_is_packed(gamma: float, budget: int) -> None:
    engine, start = moved_engine()
    reference = price(TableEngine(), pairs(), 64)  # type: ignore[arg-type]
    task = PreferenceTask(pairs(), reference, settings(gamma=gamma))
    figures = accumulate(engine, task, task.batch([3, 0, 4]), budget=budget, train=True)  # type: ignore[arg-type]
    logits = engine.logits.detach().clone().requires_grad_()
    chosen = [pairs()[row] for row in (3, 0, 4)]
    loss = plain_loss(logits, chosen, start, gamma)
    loss.backward()
    assert figures["loss"] == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(engine.logits.grad, logits.grad)


def test_gamma_0_is_plain_dpo() -> None:
    engine, start = moved_engine()
    reference = price(TableEngine(), pairs(), 64)  # type: ignore[arg-type]
    found = {}
    for gamma in (0.0, 1.0):
        task = PreferenceTask(pairs(), reference, settings(gamma=gamma))
        found[gamma] = accumulate(engine, task, task.batch([0, 1, 2]), budget=64, train=False)  # type: ignore[arg-type]
    dpo = plain_loss(engine.logits.detach(), pairs()[:3], start, 0.0)
    assert found[0.0]["loss"] == found[0.0]["dpo_loss"] == pytest.approx(dpo.item(), abs=1e-6)
    assert found[1.0]["loss"] == pytest.approx(dpo.item() + found[1.0]["sft_loss"], abs=1e-6)


def test_at_the_start_the_policy_is_the_reference() -> None:
    engine = TableEngine()
    task = PreferenceTask(pairs(), price(engine, pairs(), 64), settings())  # type: ignore[arg-type]
    figures = accumulate(engine, task, task.batch([0, 1]), budget=64, train=False)  # type: ignore[arg-type]
    assert figures["margin"] == pytest.approx(0.0, abs=1e-6)
    assert figures["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_training_prefers_what_was_chosen_and_the_sft_term_keeps_it_likely() -> None:
    after = {}
    for gamma in (0.0, 1.0):
        engine = TableEngine()
        reference = price(engine, pairs(), 64)  # type: ignore[arg-type]
        task = PreferenceTask(pairs(), reference, settings(gamma=gamma))
        plan = RowPlan(5, settings(gamma=gamma, validation_share=0.0, epochs=20), seed=0)
        trainer = StageTrainer(engine, task, plan, 64)  # type: ignore[arg-type]
        for step in range(1, plan.num_steps + 1):
            trainer.step(step)
        after[gamma] = accumulate(engine, task, task.batch(range(5)), budget=64, train=False)  # type: ignore[arg-type]
        assert after[gamma]["margin"] > 0
        assert after[gamma]["dpo_loss"] < math.log(2)
    assert after[1.0]["chosen_logprob"] > after[0.0]["chosen_logprob"]


def test_a_pair_lies_in_one_row_with_its_prompt_once() -> None:
    batch = PreferenceBatch(pairs(4), np.zeros((4, 2)), settings())
    (rows,) = pack(batch.sequences, ranks=1, budget=9, bundles=batch.bundles)
    assert len(rows) > 1
    for row in rows:
        found = [piece.sequence for piece in row.pieces]
        assert [sequence // 2 for sequence in found[::2]] == [s // 2 for s in found[1::2]]
        prompts = [index for index, span in enumerate(row.spans) if span.prompt == index]
        assert len(prompts) == len(found) // 2
    with pytest.raises(ValueError, match="belong together have 6 input tokens, more than"):
        pack(batch.sequences, ranks=1, budget=5, bundles=batch.bundles)


def test_the_reference_is_priced_once_and_read_back(tmp_path: Path) -> None:
    engine = TableEngine()
    prices = price(engine, pairs(), 9)  # type: ignore[arg-type]
    logprobs = engine.logits.detach().log_softmax(-1)
    expected = [[float(logprobs[a].sum()) for a in (p.chosen, p.rejected)] for p in pairs()]
    np.testing.assert_allclose(prices, expected, rtol=1e-6)
    write_prices(tmp_path, prices)
    np.testing.assert_array_equal(share(engine, read_prices(tmp_path, 5), 5), prices)  # type: ignore[arg-type]
    with pytest.raises(NotResumableError, match="for 6 pairs"):
        read_prices(tmp_path, 6)
    with pytest.raises(NotResumableError, match="start another run"):
        read_prices(tmp_path / "elsewhere", 5)
