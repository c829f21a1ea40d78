"""Pairs and returns as files hold them, and the sentence for each row that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curricula.preferences import PreferencePair, load_preferences
from curricula.prefix_returns import PrefixReturns, load_returns
from safeladder.errors import DataError
from safeladder.records import Message

USER = {"role": "user", "content": "q"}
PAIR = PreferencePair((Message("user", "q"),), "good", "bad")


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(tmp_path: Path, row: dict[str, Any]) -> list[Path]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return [path]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [said("good")], "rejected": [said("bad")]},
        {"chosen": [USER, said("good")], "rejected": [USER, said("bad")]},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_the_columns_of_trl_and_llama_factory_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    assert load_preferences(write(tmp_path, row)) == [PAIR]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same text"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "images": ["a.png"]},
            "column images: only RL and supervised training",
        ),
        ({"prompt": "q", "chosen": "a"}, "column rejected: must be text that is not empty"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, "column chosen: must be text that is"),
        ({"chosen": "a", "rejected": "b"}, "column prompt is missing, and chosen and rejected"),
        (
            {"chosen": [USER, said("a")], "rejected": [{**USER, "content": "r"}, said("b")]},
            "column prompt is missing, and chosen and rejected",
        ),
    ],
)
def test_a_pair_that_is_none_is_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: {told}"):
        load_preferences(write(tmp_path, row))


def test_a_prefix_comes_with_the_returns_that_are_known(tmp_path: Path) -> None:
    row = {"prompt": "q", "prefix": "First", "returns": {"safety": 1, "value": 0.25}}
    assert load_returns(write(tmp_path, row), ["safety", "value"]) == [
        PrefixReturns((Message("user", "q"),), "First", {"safety": 1.0, "value": 0.25})
    ]
    empty = {**row, "prefix": ""}
    assert load_returns(write(tmp_path, empty), ["safety", "value"])[0].prefix == ""


def test_a_head_that_no_row_teaches_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "q", "prefix": "", "returns": {"safety": 1}}
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has a return for 'rule'"):
        load_returns(write(tmp_path, row), ["safety", "rule"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"returns": {"saftey": 1}}, "'saftey' is not in value_model.principles; did you mean"),
        ({"returns": {"x": 1}}, "'x' is not in value_model.principles; there are safety"),
        ({"returns": {"safety": 1.5}}, "safety is 1.5, no number from 0 to 1"),
        ({"returns": {"safety": True}}, "safety is True, no number from 0 to 1"),
        ({"returns": {}}, "must be an object such as"),
        ({"prefix": None}, "column prefix: must be text"),
    ],
)
def test_a_row_of_returns_that_is_none_is_named(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    row = {"prompt": "q", "prefix": "", "returns": {"safety": 1.0}, **change}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*" + told):
        load_returns(write(tmp_path, row), ["safety"])
