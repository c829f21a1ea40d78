"""CDDI, and orders drawn uniformly among those with a given number of inversions."""

from __future__ import annotations

import doctest
from collections import Counter
from itertools import permutations
from random import Random

import pytest

import curricula.orders
from curricula.orders import (
    cddi,
    count_inversions,
    count_orders,
    draw_order,
    inverse,
    inversions_for,
    num_pairs,
)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(curricula.orders).failed == 0


def test_counts_of_orders_agree_with_listing_them_all() -> None:
    listed = Counter(count_inversions(order) for order in permutations(range(7)))
    assert {k: count_orders(7, k) for k in range(22)} == dict(listed)
    assert [count_orders(7, k) for k in (0, 2, 4, 6, 8, 10)] == [1, 20, 98, 259, 455, 573]
    assert (count_orders(7, 22), count_orders(7, -1)) == (0, 0)


def test_cddi_is_exact_at_the_published_levels() -> None:
    assert cddi(range(7)) == 1.0
    assert cddi(range(6, -1, -1)) == -1.0
    assert cddi(draw_order(7, 8, Random(0))) == 5 / 21
    assert cddi(draw_order(7, inversions_for(0.05, 7), Random(0))) == 1 / 21
    assert (cddi(()), cddi((0,))) == (1.0, 1.0)


@pytest.mark.parametrize(("count", "inversions"), [(7, 0), (7, 2), (7, 8), (7, 21), (5, 4), (1, 0)])
def test_a_draw_has_the_inversions_that_were_asked_for(count: int, inversions: int) -> None:
    rng = Random(3)
    assert {count_inversions(draw_order(count, inversions, rng)) for _ in range(50)} == {inversions}


def test_draws_are_uniform_by_chi_square() -> None:
    rng = Random(11)
    drawn = Counter(draw_order(7, 8, rng) for _ in range(45_500))
    assert len(drawn) == 455
    statistic = sum((n - 100) ** 2 / 100 for n in drawn.values())
    assert 454 - 4 * (2 * 454) ** 0.5 < statistic < 454 + 4 * (2 * 454) ** 0.5


def test_the_same_seed_draws_the_same_order() -> None:
    assert draw_order(9, 13, Random(5)) == draw_order(9, 13, Random(5))


@pytest.mark.parametrize("inversions", [-1, 22])
def test_an_order_that_cannot_be_is_refused(inversions: int) -> None:
    assert num_pairs(7) == 21
    with pytest.raises(ValueError, match=f"no order of 7 constraints has {inversions} inversions"):
        draw_order(7, inversions, Random(0))


@pytest.mark.parametrize("numbers", [(0, 0), (1, 2), (0, True), (0, "1")])
def test_what_is_no_permutation_has_no_order(numbers: tuple[int, ...]) -> None:
    for read in (inverse, cddi):
        with pytest.raises(ValueError, match="is no permutation: it needs 0 to 1, each once"):
            read(numbers)
