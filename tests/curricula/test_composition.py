"""Seed + constraints + order → text, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from curricula.composition import Composition, Worded

COMMA = Worded("punctuation:no_comma", "Use no commas")
QUOTES = Worded("startend:quotation", "Put it in quotes. All of it.")
TEA = Worded("keywords:existence", "Say tea", {"keywords": ["tea"]})
SOFT = Worded("style:open_ended", "Be merry")


def compose(*constraints: Worded, **fields: Any) -> Composition:
    order = tuple(range(len(constraints)))
    given = {"presented_order": order, "difficulty_rank": order} | fields
    return Composition(seed="Write.", constraints=constraints, **given)


def test_a_single_round_is_the_seed_and_the_texts_with_full_stops_between() -> None:
    made = compose(COMMA, QUOTES, TEA, presented_order=(1, 2, 0))
    assert made.single_round() == "Write. Put it in quotes. All of it.. Say tea. Use no commas."


def test_multiple_rounds_are_the_seed_and_one_turn_for_each_constraint() -> None:
    made = compose(COMMA, QUOTES, TEA, presented_order=(1, 2, 0))
    turns = ("Write.", "Put it in quotes. All of it..", "Say tea.", "Use no commas.")
    assert made.multi_round() == turns


def test_ranks_follow_the_slots_and_the_two_lists_are_not_the_same_thing() -> None:
    made = compose(COMMA, QUOTES, TEA, presented_order=(1, 2, 0), difficulty_rank=(1, 2, 0))
    assert made.presented == (QUOTES, TEA, COMMA)
    assert made.ranks == (2, 0, 1)
    assert made.cddi == pytest.approx(-1 / 3)
    again = Composition.in_order("Write.", (COMMA, QUOTES, TEA), (2, 0, 1), (1, 2, 0))
    assert again.presented_order == (1, 2, 0)


def test_a_row_tells_it_all() -> None:
    made = compose(TEA, SOFT, COMMA, presented_order=(2, 0, 1), difficulty_version=4)
    assert Composition.from_row({**made.row(), "prompt": "x"}) == made
    with pytest.raises(ValueError, match="column presented_order is missing"):
        Composition.from_row({k: v for k, v in made.row().items() if k != "presented_order"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"presented_order": (0, 0)}, r"presented_order: \[0, 0\] is no permutation"),
        ({"difficulty_rank": (1, 2)}, r"difficulty_rank: \[1, 2\] is no permutation"),
        ({"difficulty_rank": (0,)}, "difficulty_rank: 1 numbers for 2 constraints"),
    ],
)
def test_orders_that_are_none_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compose(COMMA, TEA, **fields)


def test_constraints_that_exclude_each_other_are_refused_by_name() -> None:
    title = Worded("detectable_format:title", "Give it a title")
    with pytest.raises(
        ValueError, match="startend:quotation excludes detectable_format:title; remove one"
    ):
        compose(QUOTES, title)
    with pytest.raises(ValueError, match="punctuation:no_comma stands twice"):
        compose(COMMA, COMMA)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (("keywords:existence", "Say tea"), "keywords: Field required"),
        (("keywords:unheard_of", "Say tea"), "unknown constraint"),
        (("style:open_ended", "Be merry", {"tone": "merry"}), "a soft constraint has no kwargs"),
        (("punctuation:no_comma", " "), "the constraint has no text"),
    ],
)
def test_a_constraint_without_its_parameters_or_words_is_refused(one: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Worded(*one)
