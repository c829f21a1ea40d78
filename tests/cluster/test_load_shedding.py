"""The estimate follows what calls take, and errs towards letting them in."""

from __future__ import annotations

import pytest

from cluster.load_shedding import Pace


def test_it_knows_nothing_and_lets_everybody_in_at_first() -> None:
    assert Pace().estimate_s(100) == 0.0


def test_it_follows_what_calls_take() -> None:
    pace = Pace()
    pace.add(1, 2.0)
    assert pace.estimate_s(1) == pytest.approx(2.0)
    for _ in range(60):
        pace.add(1, 0.1)
    assert pace.estimate_s(1) == pytest.approx(0.1, abs=0.05)


def test_neither_large_nor_small_calls_are_overrated() -> None:
    one_by_one, at_once = Pace(), Pace()
    for _ in range(50):
        one_by_one.add(1, 0.1)
        one_by_one.add(100, 10.0)
        at_once.add(1, 1.0)
        at_once.add(100, 1.0)
    assert one_by_one.estimate_s(1) == pytest.approx(0.1)
    assert at_once.estimate_s(1) <= 1.0
    assert at_once.estimate_s(100) == pytest.approx(1.0)
