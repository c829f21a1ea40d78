"""The probe's figures on outcomes whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evals.order_regression import regress_order
from evals.order_statistics import summarize_order
from evals.order_trials import Outcome, Trial, Variant

TYPES = ("length:words", "language:response", "keywords:existence", "startend:end")
ORDERS = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 0, 3, 1), (3, 1, 2, 0), (3, 2, 1, 0)]
Verdict = Callable[[Trial, int], bool | None]


def inversions(ranks: tuple[int, ...]) -> int:
    return sum(r > s for p, r in enumerate(ranks) for s in ranks[p + 1 :])


def trial(prompt: str, ranks: tuple[int, ...], variant: Variant = "level") -> Trial:
    return Trial(
        id=f"{variant}/{prompt}/{ranks}",
        round="single",
        variant=variant,
        prompt=prompt,
        cluster=prompt,
        ranks=ranks,
        inversions=inversions(ranks),
        cddi=1 - inversions(ranks) / 3,
        constraints=tuple({"id": TYPES[rank], "kwargs": {}, "text": ""} for rank in ranks),
        turns=("x",),
    )


def outcomes(
    verdict: Verdict, prompts: int = 12, orders: list[tuple[int, ...]] = ORDERS
) -> list[Outcome]:
    trials = [trial(f"p{g}", order) for g in range(prompts) for order in orders]
    return [Outcome(trial=t, passed=tuple(verdict(t, p) for p in range(4))) for t in trials]


def test_accuracies_are_shares_of_constraints_and_of_whole_instructions() -> None:
    def verdict(t: Trial, slot: int) -> bool:
        return t.ranks != ORDERS[0] or (t.prompt != "p0" and slot > 0) or t.prompt == "p1"

    found = summarize_order(outcomes(verdict, prompts=3), resamples=50)
    best, worst = found["levels"][0], found["levels"][-1]
    assert (worst["cddi"], worst["inversions"]) == (1.0, 0)
    assert worst["cla"] == pytest.approx((0 + 4 + 3) / 12)
    assert worst["ila"] == pytest.approx(1 / 3)
    assert (best["cla"], best["ila"]) == (1.0, 1.0)
    assert found["spread"]["value"] == pytest.approx(5 / 12)
    assert found["change_cla"]["change"] == pytest.approx(-5 / 12)
    assert found["groups"]["length"]["change"] == pytest.approx(-2 / 3)
    assert found["groups"]["startend"]["change"] == pytest.approx(-1 / 3)


def test_an_invalid_verdict_is_in_no_sum() -> None:
    def verdict(t: Trial, slot: int) -> bool | None:
        return None if t.ranks == ORDERS[0] and (slot == 0 or t.prompt == "p0") else True

    found = summarize_order(outcomes(verdict, prompts=3), resamples=50)
    last = found["levels"][-1]
    assert (last["cla"], last["ila"]) == (1.0, None)
    assert (last["constraints"], last["invalid"]) == (12, 6)
    assert found["change_cla"]["prompts"] == 2
    assert found["change_ila"]["change"] is None


def test_a_planted_slope_is_found_and_an_absent_one_is_not() -> None:
    rng = np.random.default_rng(3)

    def with_order(t: Trial, _: int) -> bool:
        return bool(rng.random() < 0.5 + 0.3 * t.cddi)

    def without(t: Trial, slot: int) -> bool:
        return bool(rng.random() < 0.2 + 0.2 * t.ranks[slot])

    planted = summarize_order(outcomes(with_order, prompts=60), resamples=300)
    assert planted["slope"]["ci95"][0] < 0.3 < planted["slope"]["ci95"][1]
    assert planted["slope"]["p"] < 0.01
    assert planted["spread"]["value"] > 2 * planted["spread"]["by_chance"]
    absent = summarize_order(outcomes(without, prompts=60), resamples=300)
    assert absent["slope"]["ci95"][0] < 0 < absent["slope"]["ci95"][1]
    assert absent["slope"]["p"] > 0.05


def test_prompts_of_one_seed_are_drawn_together() -> None:
    """Ten copies of each prompt under one cluster make no interval narrower."""
    rng = np.random.default_rng(0)
    luck = {(f"p{g}", order): rng.random() < 0.5 for g in range(8) for order in ORDERS}
    once = outcomes(lambda t, _: bool(luck[t.prompt, t.ranks]), prompts=8)
    copies = [
        Outcome(
            trial=replace(o.trial, id=f"{o.trial.id}/{k}", prompt=f"{o.trial.prompt}/{k}"),
            passed=o.passed,
        )
        for o in once
        for k in range(10)
    ]
    ends = [summarize_order(o, resamples=400)["change_cla"]["ci95"] for o in (copies, once)]
    copied, alone = (high - low for low, high in ends)
    assert copied > 0.7 * alone


def test_one_prompt_has_figures_but_no_interval() -> None:
    found = summarize_order(outcomes(lambda t, p: p > 1, prompts=1), resamples=50)
    assert found["levels"][0]["cla"] == 0.5
    assert found["levels"][0]["cla_ci95"] is None
    assert found["slope"]["ci95"] is None


def test_one_level_has_no_change_and_no_slope() -> None:
    found = summarize_order(outcomes(lambda t, p: p > 1, orders=[ORDERS[0]]), resamples=50)
    assert (found["change_cla"]["change"], found["slope"]["value"]) == (None, None)


def test_two_orders_of_equal_cddi_are_held_against_each_other() -> None:
    turned = [(1, 2, 3, 0), (3, 0, 1, 2)]
    extra = [
        Outcome(trial=trial(f"p{g}", order, "rotation"), passed=(True, order[0] == 3, True, True))
        for g in range(5)
        for order in turned
    ]
    found = summarize_order([*outcomes(lambda t, p: True, prompts=5), *extra], resamples=50)
    (row,) = found["rotations"]
    assert row["cddi"] == 0
    assert row["orders"] == [list(order) for order in turned]
    assert (row["first"], row["last"]) == (0.75, 1.0)
    assert [level["cla"] for level in found["levels"]] == [1.0] * 5


ALL = list(itertools.permutations(range(4)))


def test_a_type_that_gains_in_front_is_not_taken_for_an_effect_of_cddi() -> None:
    """Hard types pass more often the further in front they stand, whatever the others do: CLA then
    rises with CDDI, and only the interacting model says why."""
    rng = np.random.default_rng(1)

    def verdict(t: Trial, slot: int) -> bool:
        return bool(rng.random() < 0.5 - 0.15 * (1.5 - t.ranks[slot]) * (slot - 1.5))

    found = regress_order(outcomes(verdict, prompts=60, orders=ALL), resamples=200)
    assert found["additive"]["cddi"]["ci95"][0] > 0.1
    low, high = found["interacting"]["cddi"]["ci95"]
    assert low < 0 < high


def test_an_effect_of_the_whole_order_survives_types_and_slots() -> None:
    rng = np.random.default_rng(2)

    def verdict(t: Trial, slot: int) -> bool:
        return bool(rng.random() < 0.4 + 0.1 * t.ranks[slot] - 0.05 * slot + 0.2 * t.cddi)

    found = regress_order(outcomes(verdict, prompts=60, orders=ALL), resamples=200)
    for model in ("additive", "interacting"):
        low, high = found[model]["cddi"]["ci95"]
        assert low < 0.2 < high
        assert low > 0
    assert found["additive"]["slots"]["3"]["value"] == pytest.approx(-0.15, abs=0.06)


def test_what_the_data_do_not_tell_apart_has_no_number() -> None:
    """With one order alone, CDDI is a constant, which the types' own levels already hold."""
    found = regress_order(outcomes(lambda t, p: p > 1, orders=[ORDERS[0]]), resamples=50)
    assert found["additive"]["cddi"] == {"value": None, "ci95": None}
    assert found["interacting"]["slots"]["1"]["value"] is None
