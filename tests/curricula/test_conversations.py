"""Rows of other trainers' files, and the sentence for each that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curricula.demonstrations import Demonstration, load_demonstrations
from safeladder.errors import DataError
from safeladder.records import Message

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def load(tmp_path: Path, row: dict[str, Any]) -> Demonstration:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = load_demonstrations([path])
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_the_columns_of_trl_and_llama_factory_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    assert load(tmp_path, row) == Demonstration((Message("user", "q"),), "a")


def test_an_instruction_takes_its_input_and_its_system_turn_along(tmp_path: Path) -> None:
    row = {"system": "be brief", "instruction": "sum up", "input": "a text", "output": "a"}
    assert load(tmp_path, row).messages == (
        Message("system", "be brief"),
        Message("user", "sum up\na text"),
    )


def test_what_a_filter_asks_for_comes_along(tmp_path: Path) -> None:
    row = {"prompt": "q", "response": "a", "route": "rule", "answer": "4", "source": "teacher"}
    found = load(tmp_path, row)
    assert (found.route, found.reference, found.source) == ("rule", "4", "teacher")
    assert found.place.endswith("rows.jsonl:1")
    assert load(tmp_path, {"prompt": "q", "response": "a"}).source == "rows.jsonl"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "q", "response": "a", "images": "a.png"}, "column images: must be a list"),
        ({"conversations": "q"}, "column conversations: must be a list of turns"),
        ({"conversations": [{"from": "tool", "value": "q"}]}, "column conversations: a turn is"),
        ({"instruction": 5, "output": "a"}, "column instruction: must be text, as must input"),
        ({"messages": [USER]}, "column response: must be text that is not empty"),
        ({"prompt": "q", "completion": [{"role": "user"}]}, "column completion: a turn is"),
        ({"prompt": "q", "response": "a", "route": 3}, "column route: must be the name of a route"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: {told}"):
        load(tmp_path, row)
