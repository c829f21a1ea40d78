"""Pass rates by type, for the policy of this moment."""

from __future__ import annotations

import json
from random import Random

import pytest

from curricula.type_difficulty import TypeDifficulty


def test_the_hardest_type_has_rank_zero_and_the_largest_difficulty() -> None:
    counted = TypeDifficulty()
    counted.note(0, ["a", "b", "c"] * 10, [True, False, None] * 10)
    assert counted.ranks(["a", "b", "c"]) == (2, 0, 1)
    assert counted.accuracy("c") == counted.accuracy("never seen") == 0.5
    share = counted.difficulty(["a", "b", "c"])
    assert sum(share.values()) == pytest.approx(1)
    assert share["b"] > share["c"] > share["a"]


def test_late_outcomes_of_an_old_version_weigh_as_if_they_had_come_in_time() -> None:
    outcomes = [(version, ["a"], [version % 3 == 0]) for version in range(8)]
    in_time, late = TypeDifficulty(), TypeDifficulty()
    for outcome in outcomes:
        in_time.note(*outcome)
    shuffled = Random(2).sample(outcomes, len(outcomes))
    for outcome in shuffled:
        late.note(*outcome)
    assert late.version == in_time.version == 7
    assert late.accuracy("a") == pytest.approx(in_time.accuracy("a"))


def test_old_outcomes_fade() -> None:
    counted = TypeDifficulty(decay=0.5)
    counted.note(0, ["a"] * 100, [False] * 100)
    counted.note(20, ["a"] * 10, [True] * 10)
    assert counted.accuracy("a") > 0.9


def test_a_dump_comes_back_through_json() -> None:
    counted = TypeDifficulty()
    counted.note(3, ["a", "b"], [True, False])
    again = TypeDifficulty.load(json.loads(json.dumps(counted.dump())))
    assert again.dump() == counted.dump()
    assert again.ranks(["a", "b"]) == (1, 0)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"version": 1, "decay": 2.0, "types": {}},
        {"version": 1, "decay": 0.9, "types": {"a": [3, 2]}},
        {"version": 1, "decay": 0.9, "types": {"a": 3}},
    ],
)
def test_what_is_no_dump_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"pass rates by type|decay must be|3 passes of 2"):
        TypeDifficulty.load(data)
