"""IFEval's format: strict and loose, and nothing that becomes a number without an outcome."""

from __future__ import annotations

from typing import Any

import pytest

from evals.ifeval import (
    all_met,
    follow,
    item_of,
    loose_variants,
    mean_floor,
    outcomes_by_group,
    outcomes_by_prompt,
    read_items,
    type_table,
    visible,
)
from safeladder.errors import DataError
from safeladder.records import Message, Prompt

ROW = {
    "key": 1000,
    "prompt": "Write about tea.",
    "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_bullet_lists"],
    "kwargs": [{}, {"num_bullets": 1, "relation": None}],
}


def items(*rows: dict[str, Any]) -> Any:
    return read_items((f"ifeval.jsonl:{n}", row) for n, row in enumerate(rows, start=1))


def test_loose_forgives_a_first_and_a_last_line_and_asterisks() -> None:
    (item,) = items(ROW)
    met, missed = (True, True), (False, True)
    followed = {
        "- tea": (met, met),
        "Sure, here:\n- tea": (missed, met),
        "- tea\nOk, so?": (missed, met),
        "a, b\n- c, d\ne, f": (missed, missed),
    }
    for response, expected in followed.items():
        one = follow(item, response)
        assert (one.strict, one.loose) == expected


def test_there_are_eight_variants() -> None:
    assert len(loose_variants("a\nb\nc")) == 8
    assert set(loose_variants("*a*\nb\nc")) == {
        "*a*\nb\nc", "a\nb\nc", "b\nc", "*a*\nb", "a\nb", "b",
    }  # fmt: skip


def test_only_the_visible_part_is_judged_and_a_blank_answer_follows_nothing() -> None:
    (item,) = items(ROW)
    assert follow(item, "<think>a, b</think>\n\n- tea").strict == (True, True)
    assert follow(item, "<think>so</think> ").strict == (False, False)
    assert visible("<think>so</think>\n\ntea ") == "tea"
    assert visible("\n\ntea ") == "\n\ntea "
    assert follow(item, "").loose == (False, False)


def test_an_instruction_is_followed_only_as_a_whole_and_unknown_stays_unknown() -> None:
    assert all_met((True, True)) is True
    assert all_met((True, None, False)) is False
    assert all_met((True, None)) is None


def test_outcomes_by_prompt_have_what_the_table_before_and_after_needs() -> None:
    (item,) = items(ROW)
    said = "Sure, here:\n- tea"
    outcomes = outcomes_by_prompt([(item, said)]) | outcomes_by_group([follow(item, said)])
    values = {metric: of["1000"] for metric, of in outcomes.items()}
    assert values == {
        "constraints_met": 0.5,
        "instructions_met": 0.0,
        "constraints_met_loose": 1.0,
        "instructions_met_loose": 1.0,
        "constraints_met/punctuation": 0.0,
        "constraints_met/detectable_format": 1.0,
    }
    assert mean_floor([item]) == 0.5


def test_a_rule_that_crashes_is_masked_and_not_averaged() -> None:
    odd = ROW | {
        "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
        "kwargs": [{"keywords": ["(C"]}, {}],
    }
    (item,) = items(odd)
    outcomes = outcomes_by_prompt([(item, "tea")])
    assert outcomes["constraints_met"] == {"1000": 1.0}
    assert "instructions_met" not in outcomes
    table = type_table([follow(item, "tea"), follow(item, "tea, so")])
    assert table == {
        "keywords:existence": {"judged": 0, "strict": 0, "loose": 0, "masked": 2},
        "punctuation:no_comma": {"judged": 2, "strict": 1, "loose": 1, "masked": 0},
    }


def test_prompts_of_a_run_are_items_if_they_have_the_columns() -> None:
    def prompt(meta: dict[str, Any]) -> Prompt:
        return Prompt(id="p", messages=(Message("user", "Go."),), route="r", meta=meta)

    meta = {name: ROW[name] for name in ("instruction_id_list", "kwargs")}
    assert item_of(prompt(meta)) is not None
    assert item_of(prompt({})) is None
    assert item_of(prompt(meta | {"kwargs": []})) is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": ""}, "column prompt: must be text"),
        ({"kwargs": [{}]}, "kwargs: expected a list as long as instruction_id_list"),
        ({"kwargs": [{}, {}]}, "num_bullets: Field required"),
        ({"instruction_id_list": None}, "the row has no hard constraints"),
        ({"key": 1000}, "column key: '1000' stands twice"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=r"^ifeval.jsonl:2: ") as caught:
        items(ROW, ROW | {"key": 1001} | fields)
    assert told in str(caught.value)
