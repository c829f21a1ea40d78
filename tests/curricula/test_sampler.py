"""Draws of a sampler: shares, passes, schedules, and the same again after a restart."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from curricula.buckets import PromptError
from curricula.pools import CHUNK
from curricula.sampler import Sampler
from safeladder.curriculum_config import CurriculumConfig
from safeladder.draws import Draw, DrawHistory
from safeladder.errors import ConfigError

from .sampler_play import (
    ADAPTIVE,
    STAGED,
    Asked,
    always,
    by_constraints,
    config,
    prompts,
    solvable,
)

# ---- passes and shares


def test_every_pass_asks_each_prompt_once_and_in_a_new_order() -> None:
    asked = Asked(Sampler(prompts(40), config(), seed=3), always(0.5))
    rows = [draw.row for draw in asked.steps(30)]
    passes = [rows[i : i + 40] for i in range(0, 120, 40)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    again = Asked(Sampler(prompts(40), config(), seed=3), always(0.5))
    assert [draw.row for draw in again.steps(30)] == rows
    other = Asked(Sampler(prompts(40), config(), seed=4), always(0.5))
    assert [draw.row for draw in other.steps(30)] != rows


def test_pools_larger_than_a_chunk_are_walked_whole_and_in_one_order() -> None:
    rows = prompts(CHUNK * 2 + 5)
    asked = Asked(Sampler(rows, config(), seed=1), always(0.5))
    first = [asked.draws[key].row for key in asked.draw(len(rows))]
    assert sorted(first) == list(range(len(rows)))
    fresh = Sampler(rows, config(), seed=1)
    half = CHUNK + 17
    fresh.restore(DrawHistory(asked=Counter(first[:half]), reasons={("rule", "pass"): half}))
    rest = Asked(fresh, always(0.5))
    assert [rest.draws[key].row for key in rest.draw(100)] == first[half : half + 100]


def test_without_shuffling_rows_come_as_they_stand() -> None:
    asked = Asked(Sampler(prompts(3), config(), seed=3, shuffle=False), always(0.5))
    assert [asked.draws[key].row for key in asked.draw(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_labels_keep_their_shares_and_each_walks_its_own_passes() -> None:
    rows = [*prompts(30, "safety"), *prompts(6, "math")]
    mix = {"safety": 0.75, "math": 0.25}
    asked = Asked(Sampler(rows, config(), seed=0, mix=mix), always(0.5))
    draws = asked.steps(30)
    for number in range(4, 121, 4):
        labels = Counter(draw.label for draw in draws[:number])
        assert labels == {"safety": number * 3 // 4, "math": number // 4}
    math = [draw.row for draw in draws if draw.label == "math"]
    assert [sorted(math[i : i + 6]) for i in range(0, 30, 6)] == [list(range(30, 36))] * 5


def test_a_row_of_weight_two_is_asked_twice_as_often() -> None:
    asked = Asked(Sampler(prompts(6), config(), seed=0, weights=[2, 1, 1, 1, 1, 2]), always(0.5))
    times = Counter(draw.row for draw in asked.steps(40))
    assert times == {0: 40, 5: 40, 1: 20, 2: 20, 3: 20, 4: 20}


def test_a_mixture_that_does_not_fit_the_rows_is_refused() -> None:
    rows = [*prompts(3, "safety"), *prompts(3, "math")]
    with pytest.raises(
        ConfigError, match="no share for the label 'math', which the prompt 'math-0"
    ):
        Sampler(rows, config(), seed=0, mix={"safety": 1.0})
    with pytest.raises(ConfigError, match="a share for 'value', but no row has that label"):
        Sampler(rows, config(), seed=0, mix={"safety": 1, "math": 1, "value": 1})


# ---- schedules


def test_staged_asks_easy_buckets_first_and_rehearses_the_others() -> None:
    draws = Asked(Sampler(by_constraints(100), STAGED, seed=0), always(0.5)).steps(25)
    easy, hard = Counter(d.bucket for d in draws[:40]), Counter(d.bucket for d in draws[40:])
    assert easy == {"to 3": 36, "above 3": 4}
    assert hard == {"above 3": 54, "to 3": 6}
    assert {d.why for d in draws[:40] if d.bucket == "above 3"} == {"rehearsal"}


def test_staged_goes_on_once_the_bucket_passes_often_enough() -> None:
    staged = config(
        schedule="staged",
        bucket_by="num_constraints",
        boundaries=[2.0, 4.0],
        advance_at=0.8,
        rehearsal=0.0,
        decay=0.5,
    )
    learned = Asked(
        Sampler(by_constraints(100), staged, seed=0), lambda draw, version: 1.0 * (version > 6)
    )
    buckets = [draw.bucket for draw in learned.steps(20)]
    assert set(buckets[:28]) == {"to 2"}
    assert set(buckets[-8:]) == {"above 4"}
    assert list(dict.fromkeys(buckets)) == ["to 2", "to 4", "above 4"]


def test_mixed_asks_buckets_in_proportion_to_their_rows() -> None:
    mixed = config(schedule="mixed", bucket_by="num_constraints", boundaries=[3.0])
    draws = Asked(Sampler(by_constraints(100), mixed, seed=0), always(0.5)).steps(25)
    assert Counter(d.bucket for d in draws) == {"to 3": 60, "above 3": 40}


def test_adaptive_asks_what_passes_sometimes_and_rehearses_the_rest() -> None:
    draws = Asked(Sampler(prompts(60), ADAPTIVE, seed=0), solvable).steps(100)
    late = Counter(draw.row % 3 for draw in draws[200:])
    assert late[1] >= 0.8 * late.total()
    assert late[0] + late[2] >= 0.1 * late.total()
    early = Counter(draw.row % 3 for draw in draws[:60])
    assert min(early.values()) >= 15, "at first nothing is known, and all are asked"


def test_adaptive_follows_the_policy_as_it_learns() -> None:
    def learned(draw: Draw, version: int) -> float:
        return 0.5 if (draw.row % 2 == 0) == (version < 60) else (0.0 if version < 60 else 1.0)

    adaptive = config(schedule="adaptive", decay=0.95, rehearsal=0.2)
    draws = Asked(Sampler(prompts(40), adaptive, seed=0), learned).steps(160)
    before = [draw.row % 2 for draw in draws[160:240]]
    after = [draw.row % 2 for draw in draws[-80:]]
    assert sum(before) < 0.35 * len(before)
    assert sum(after) > 0.65 * len(after)


def test_when_nothing_is_in_the_window_the_run_goes_on_with_what_there_is() -> None:
    draws = Asked(Sampler(prompts(8), ADAPTIVE, seed=0), always(1.0)).steps(40)
    assert {draw.bucket for draw in draws[-8:]} == {"too easy"}
    assert max(Counter(d.row for d in draws).values()) <= 21


def test_buckets_of_difficulty_follow_the_estimates() -> None:
    staged = config(
        schedule="staged", bucket_by="difficulty", boundaries=[0.5], stage_steps=50, rehearsal=0.1
    )
    draws = Asked(
        Sampler(prompts(40), staged, seed=0), lambda draw, version: 1.0 * (draw.row % 2)
    ).steps(100)
    easy = [draw.row % 2 for draw in draws[100:200]]
    hard = [draw.row % 2 for draw in draws[240:]]
    assert sum(easy) > 0.8 * len(easy)
    assert sum(hard) < 0.2 * len(hard)


def test_a_label_without_the_column_has_no_buckets_and_keeps_its_share() -> None:
    rows = [*by_constraints(50), *prompts(10, "safety")]
    mix = {"rule": 1.0, "safety": 1.0}
    draws = Asked(Sampler(rows, STAGED, seed=0, mix=mix), always(0.5)).steps(10)
    assert Counter(d.bucket for d in draws) == {"": 20, "to 3": 18, "above 3": 2}
    assert sorted(Counter(d.row for d in draws if d.label == "safety").values()) == [2] * 10


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"num_constraints": None}, "some rows of the label 'rule' have it and some do not"),
        ({"num_constraints": "many"}, "must be a number, not 'many'"),
        ({"num_constraints": 2, "types": "length"}, "needs a list of names"),
    ],
)
def test_a_row_that_has_no_place_is_named(row: dict[str, Any], told: str) -> None:
    rows = [*by_constraints(3), *prompts(1, **{k: lambda i, v=v: v for k, v in row.items()})]
    staged = STAGED.model_copy(update={"types": "types"})
    with pytest.raises(PromptError, match=told) as caught:
        Sampler(rows, staged, seed=0)
    assert caught.value.row == 3


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("bucket_by", STAGED),
        ("types", config(schedule="adaptive", types="instruction_id_list")),
        ("together", config(schedule="mixed", together="pair")),
    ],
)
def test_a_column_that_no_row_has_is_refused(key: str, settings: CurriculumConfig) -> None:
    told = rf"missing here and in every other row; check `curriculum\.{key}`"
    with pytest.raises(PromptError, match=told):
        Sampler(prompts(3), settings, seed=0)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"schedule": "staged"}, "needs `bucket_by`"),
        ({"schedule": "staged", "bucket_by": "n", "boundaries": [1.0]}, "`stage_steps` or"),
        ({"bucket_by": "n", "boundaries": [2.0, 2.0]}, "must rise"),
        ({"bucket_by": "difficulty", "boundaries": [2.0]}, "between 0 and 1"),
        ({"boundaries": [2.0]}, "boundaries need `bucket_by`"),
        ({"schedule": "mixed", "stage_steps": 5}, "do nothing with schedule: mixed"),
        ({"bucket_by": "n"}, "bucket_by needs `boundaries`"),
        ({"window": [0.8, 0.2]}, "low below high"),
    ],
)
def test_a_schedule_that_is_none_is_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**keys)


def test_pairs_are_asked_one_directly_after_the_other() -> None:
    rows = prompts(24, pair=lambda i: None if i >= 20 else i // 2)
    together = ADAPTIVE.model_copy(update={"together": "pair"})
    draws = Asked(Sampler(rows, together, seed=0), solvable).steps(60)
    for first, second in pairwise(draws):
        if first.why != "together" and first.row < 20:
            assert (second.row, second.why) == (first.row ^ 1, "together")
        else:
            assert second.why != "together"
    times = Counter(draw.row for draw in draws)
    assert all(abs(times[row] - times[row ^ 1]) <= 1 for row in range(20))
    odd = [*rows, *prompts(1, "math", pair=lambda i: 0)]
    with pytest.raises(PromptError, match="column pair: 0 also stands in a row of the label 'rule"):
        Sampler(odd, together, seed=0)
