"""Drawn sets and orders: nothing that conflicts, everything varied, the same seed the same rows."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from curricula.composer import ComposeOptions, compose_rows
from curricula.composition import Composition
from curricula.constraint_sets import draw_constraint, draw_constraints
from curricula.constraint_values import VALUES
from curricula.type_difficulty import TypeDifficulty
from rewards.constraints.vocabulary import HARD, conflicting_pair
from safeladder.errors import DataError

SEEDS = [(f"seeds.jsonl:{n}", {"prompt": f"Tell me about thing {n}.", "lang": "en"}) for n in
         range(1, 41)]  # fmt: skip


def composed(difficulty: TypeDifficulty | None = None, **options: Any) -> list[dict[str, Any]]:
    return list(compose_rows(SEEDS, ComposeOptions(**options), difficulty))


@pytest.mark.parametrize("name", HARD)
def test_values_of_every_type_can_be_drawn_and_vary(name: str) -> None:
    assert set(VALUES) == set(HARD)
    drawn = [draw_constraint(name, "Tell me.", Random(n)) for n in range(40)]
    assert len({one.text for one in drawn}) >= 5
    if drawn[0].kwargs and name not in ("combination:repeat_prompt",):
        assert len({str(one.kwargs) for one in drawn}) > 1


def test_no_drawn_set_holds_a_conflict_and_all_company_is_found() -> None:
    rng = Random(0)
    sets = [[one.id for one in draw_constraints("Go.", 5, rng)] for _ in range(400)]
    assert all(len(ids) == 5 and conflicting_pair(ids) is None for ids in sets)
    pairs = Counter(frozenset(two) for ids in sets for two in pairwise(sorted(ids)))
    assert len({frozenset(ids) for ids in sets}) > 350
    assert len(pairs) > 100
    singles = {draw_constraints("Go.", 1, rng)[0].id for _ in range(600)}
    assert singles == set(HARD)


def test_a_set_that_cannot_be_is_refused() -> None:
    types = ("startend:quotation", "detectable_format:title")
    with pytest.raises(ValueError, match="no set of 2 constraints without a conflict"):
        draw_constraints("Go.", 2, Random(0), types)


def test_the_same_seed_composes_the_same_rows_and_rows_do_not_depend_on_their_neighbours() -> None:
    rows = composed(per_seed=2)
    assert rows == composed(per_seed=2)
    assert rows != composed(per_seed=2, seed=1)
    later = list(compose_rows(SEEDS[20:], ComposeOptions(per_seed=2)))
    assert later == rows[40:]
    assert len({row["id"] for row in rows}) == 80
    assert all(row["lang"] == "en" for row in rows)


def test_fixed_orders_have_the_cddi_that_is_asked_for_by_the_policys_own_difficulty() -> None:
    difficulty = TypeDifficulty()
    for number, name in enumerate(HARD):
        difficulty.note(7, [name] * 40, [k < number for k in range(40)])
    hardest = list(HARD)
    for row in composed(difficulty, counts=(4,), orders="fixed", cddi=1.0):
        shown = [row["instruction_id_list"][index] for index in row["presented_order"]]
        assert shown == sorted(shown, key=hardest.index)
        assert (row["cddi"], row["difficulty_version"]) == (1.0, 7)
    assert {row["cddi"] for row in composed(counts=(4,), orders="fixed", cddi=-1.0)} == {-1.0}


def test_uniform_orders_spread_over_the_levels_and_pairs_mirror_each_other() -> None:
    assert len({row["cddi"] for row in composed(counts=(5,), per_seed=3)}) == 11
    pairs = composed(counts=(4,), orders="paired")
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert first["pair"] == second["pair"]
        assert first["constraints"] == second["constraints"]
        assert first["cddi"] == -second["cddi"]
        assert first["presented_order"] == second["presented_order"][::-1]


def test_rounds_differ_in_what_is_asked_and_both_can_be_read_back() -> None:
    (single, *_), (multi, *_) = composed(counts=(3,)), composed(counts=(3,), shape="multi")
    assert single["prompt"] == Composition.from_row(single).single_round()
    again = Composition.from_row(multi)
    assert (multi["prompt"], *multi["turns"]) == again.multi_round()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": " "}, "column prompt: must be text"),
        ({"prompt": "Go.", "constraints": []}, "must be a list of constraints"),
        ({"prompt": "Go.", "constraints": [{"id": "keywords:existence"}]}, "keywords: Field req"),
        ({"prompt": "Go.", "constraints": [{"id": "x:y"}]}, "unknown constraint 'x:y'"),
        ({"prompt": "Go.", "constraints": ["no commas"]}, "a constraint is {id, kwargs, text}"),
        (
            {
                "prompt": "Go.",
                "constraints": [{"id": "startend:quotation"}, {"id": "detectable_format:title"}],
            },
            "startend:quotation excludes detectable_format:title",
        ),
        ({"prompt": "Tell me about thing 1."}, "is also the id of seeds.jsonl:1"),
    ],
)
def test_a_seed_that_cannot_be_used_is_named(row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=r"^more.jsonl:3: column ") as caught:
        list(compose_rows([*SEEDS, ("more.jsonl:3", row)], ComposeOptions()))
    assert told in str(caught.value)


def test_constraints_that_a_row_asks_for_are_taken_as_they_are() -> None:
    asked = [{"id": "punctuation:no_comma", "text": "Mind: no commas"}, {"id": "style:open_ended",
             "text": "Be merry"}]  # fmt: skip
    options = ComposeOptions(orders="none")
    (row,) = compose_rows([("s:1", {"prompt": "Go.", "constraints": asked})], options)
    assert row["prompt"] == "Go. Mind: no commas. Be merry."
