"""What a probe asks: paired over levels, drawn by seed, and rendered as PBIF does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.probe_plan import (
    choose_rows,
    count_difficulty,
    difficulty_trials,
    hard_to_easy,
    plan_trials,
    read_difficulty,
    read_probe_rows,
    rotated_orders,
)
from curricula.orders import cddi
from curricula.type_difficulty import TypeDifficulty
from evals.order_trials import Outcome
from safeladder.errors import ConfigError, DataError
from tests.constraint_rows import CONSTRAINTS, write_rows

COMMA, RAIN, QUOTES = (one[0] for one in CONSTRAINTS)
TEXT = {one[0]: one[2] for one in CONSTRAINTS}
COUNTS: dict[str, Any] = {
    "version": 3,
    "decay": 0.9,
    "types": {COMMA: [9, 10], RAIN: [2, 10], QUOTES: [5, 10]},
}
HARDNESS = TypeDifficulty.load(COUNTS)
"""Rain is the hardest here, whatever the file's own order is."""


def test_the_hardest_stands_first_at_plus_one_and_last_at_minus_one(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl"))
    trials = plan_trials(rows, HARDNESS)
    by_level = {(t.round, t.prompt, t.inversions): t for t in trials}
    assert len(trials) == len(by_level) == 4 * 2 * 4  # rows, rounds, levels of three constraints
    for row in rows:
        top = by_level["single", row.id, 0]
        assert (top.cddi, top.types) == (1.0, (RAIN, QUOTES, COMMA))
        seed = row.composition.seed
        assert top.turns == (f"{seed} {TEXT[RAIN]}. {TEXT[QUOTES]}. {TEXT[COMMA]}.",)
        bottom = by_level["multi", row.id, 3]
        assert (bottom.cddi, bottom.ranks) == (-1.0, (2, 1, 0))
        assert bottom.turns == (seed, f"{TEXT[COMMA]}.", f"{TEXT[QUOTES]}.", f"{TEXT[RAIN]}.")
        assert [one["text"] for one in bottom.constraints] == [TEXT[k] for k in bottom.types]


def test_orders_are_drawn_by_row_and_level_and_shared_by_both_rounds(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl", num_seeds=30))
    trials = plan_trials(rows, HARDNESS)
    assert plan_trials(rows, HARDNESS) == trials
    assert plan_trials(rows[5:], HARDNESS, rounds=("single",)) == [
        t for t in trials if t.round == "single" and t.prompt in {row.id for row in rows[5:]}
    ]
    orders = {(t.round, t.prompt, t.inversions): t.ranks for t in trials}
    assert all(orders["single", p, k] == orders["multi", p, k] for _, p, k in orders)
    assert {t.ranks for t in trials if t.inversions == 1} == {(1, 0, 2), (0, 2, 1)}
    assert plan_trials(rows, HARDNESS, seed=1) != trials


def test_another_difficulty_is_another_trial(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl"))
    one = plan_trials(rows, HARDNESS)
    other = plan_trials(
        rows, TypeDifficulty.load(COUNTS | {"types": COUNTS["types"] | {RAIN: [10, 10]}})
    )
    assert {t.id for t in one}.isdisjoint({t.id for t in other})
    assert len({t.id for t in one}) == len(one)


def test_rotations_come_in_pairs_of_one_cddi() -> None:
    found = rotated_orders(7)
    values = [cddi(order) for order in found]
    assert values[0::2] == values[1::2]
    assert len(set(found)) == len(found) == 12
    assert (1, 2, 3, 4, 5, 6, 0) in found
    assert (6, 0, 1, 2, 3, 4, 5) in found


def test_rotations_are_planned_at_levels_that_are_probed(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl"))
    turned = [t for t in plan_trials(rows, HARDNESS, rotations=True) if t.variant == "rotation"]
    assert {t.ranks for t in turned} == set(rotated_orders(3))
    ends = plan_trials(rows, HARDNESS, levels=(1.0, -1.0), rotations=True)
    assert {t.variant for t in ends} == {"level"}


def test_seed_instructions_repeat_as_little_as_possible(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl", num_seeds=5, copies=4))
    probed, first = choose_rows(rows, 5, seed=3)
    assert len({row.composition.seed for row in probed}) == 5
    assert {row.id for row in probed}.isdisjoint({row.id for row in first})
    assert choose_rows(rows, 5, seed=3) == (probed, first)
    everything, again = choose_rows(rows, 20, seed=0)
    assert {row.id for row in everything} == {row.id for row in again}
    with pytest.raises(ConfigError, match="the file has 20 rows"):
        choose_rows(rows, 21, seed=0)


def test_the_first_pass_asks_each_row_once_in_any_order(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl", num_seeds=20))
    trials = difficulty_trials(rows, seed=0)
    assert [t.prompt for t in trials] == [row.id for row in rows]
    assert len({t.types for t in trials}) > 3
    assert {t.id for t in trials}.isdisjoint({t.id for t in plan_trials(rows, HARDNESS)})


def test_difficulty_is_counted_from_what_has_a_verdict(tmp_path: Path) -> None:
    trials = difficulty_trials(read_probe_rows(write_rows(tmp_path / "rows.jsonl")), seed=0)

    def outcomes(quotes: bool | None) -> list[Outcome]:
        return [
            Outcome(
                trial=trial,
                passed=tuple(
                    {COMMA: True, RAIN: k == 0, QUOTES: quotes}[kind] for kind in trial.types
                ),
            )
            for k, trial in enumerate(trials)
        ]

    with pytest.raises(ConfigError, match=f"no verdict on {QUOTES}"):
        count_difficulty(outcomes(None))
    found = count_difficulty(outcomes(False))
    assert found.dump()["types"] == {COMMA: [4, 4], RAIN: [1, 4], QUOTES: [0, 4]}
    assert hard_to_easy(found) == [QUOTES, RAIN, COMMA]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "no pass rates by type"),
        (json.dumps(COUNTS | {"types": {COMMA: [3, 2]}}), "3 passes of 2"),
        (json.dumps(COUNTS | {"types": {COMMA: [1, 2]}}), f"nothing of {RAIN}, {QUOTES}"),
        ("{", "cannot be read"),
    ],
)
def test_a_difficulty_file_that_says_too_little_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl"))
    path = tmp_path / "difficulty.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_difficulty(path, rows)
    path.write_text(json.dumps(COUNTS))
    assert read_difficulty(path, rows).dump() == HARDNESS.dump()


def test_rows_of_our_own_composer_and_of_multi_round_files_are_read(tmp_path: Path) -> None:
    rows = read_probe_rows(write_rows(tmp_path / "rows.jsonl"))
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row.composition.row()) + "\n" for row in rows))
    assert [row.composition for row in read_probe_rows(own)] == [row.composition for row in rows]
    multi = tmp_path / "multi.jsonl"
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    multi.write_text(json.dumps(first | {"prompt": "Tell me fact 0."}) + "\n")
    (found,) = read_probe_rows(multi)
    assert found.composition.seed == "Tell me fact 0."
    assert found.composition.ranks == (2, 0, 1)


def test_rows_with_another_number_of_constraints_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    row = json.loads(path.read_text().splitlines()[0])
    short = {k: v[:1] for k, v in row.items() if isinstance(v, list)} | {"ranking": [0]}
    short["prompt"] = f"Tell me. {CONSTRAINTS[0][2]}."
    with path.open("a") as file:
        file.write(json.dumps(short) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:5: 1 constraints"):
        read_probe_rows(path)
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        read_probe_rows(path)
