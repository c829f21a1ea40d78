"""Which demonstrations are trained, and that the decision outlives the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.acceptance import judge_demonstrations, read_acceptance
from cluster.data_checks import check_data, stage_lines
from cluster.supervised import accepted_rows
from curricula.demonstrations import load_demonstrations
from safeladder.config import Config
from safeladder.errors import DataError, NotResumableError, VerifierUnavailableError
from tests.tiny_model import save_tiny_model

GOOD = "<think>2 and 2 are four.</think> The answer is 4."
ROWS: list[dict[str, Any]] = [
    {"prompt": "2 + 2?", "response": GOOD, "route": "rule", "reference": "4"},
    {"prompt": "2 + 2?", "response": "4", "route": "rule", "reference": "4"},
    {"prompt": "2 + 3?", "response": GOOD, "route": "rule", "reference": "5"},
    {
        "prompt": "2 + 2?",
        "response": "<think>二加二等于四,没有问题</think> four",
        "source": "other",
    },
    {"prompt": "why?", "response": f"<think>{'so it is ' * 9}</think> It is.", "source": "other"},
    {"prompt": "why?", "response": "<think>Let me check that.</think> So.", "source": "other"},
]
ALL = {"format": True, "language": True, "max_repetition": 0.3, "verify": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def make_config(
    folder: Path, filters: dict[str, Any], rows: list[dict[str, Any]] = ROWS, **sections: Any
) -> Config:
    path = folder / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Config.model_validate(
        {
            "stage": "sft",
            "run": {"name": "sft", "root": str(folder / "runs")},
            "model": {"path": "models/none"},
            "principles": {"rule": {"verifier": "rewards.exact:ExactAnswer"}},
            "routes": {"rule": {"rule": 1.0}},
            "sft": {"data": [str(path)], "filters": filters},
            **sections,
        }
    )


def refused(config: Config) -> dict[int, str]:
    assert config.sft is not None
    return dict(judge_demonstrations(config, load_demonstrations(config.sft.data)).refused)


def test_without_filters_every_row_is_taken(tmp_path: Path) -> None:
    assert refused(make_config(tmp_path, {})) == {}


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"format": True}, {1: "format: not exactly one think block"}),
        ({"language": True}, {3: "language: mixed languages"}),
        ({"max_repetition": 0.3}, {4: "repetition"}),
        ({"verify": True}, {2: "rule: below 0.5"}),
    ],
)
def test_each_filter_refuses_its_own_kind(
    tmp_path: Path, filters: dict[str, Any], told: dict[int, str]
) -> None:
    assert refused(make_config(tmp_path, filters)) == told


def test_sources_are_told_apart_with_reasons_and_behaviours(tmp_path: Path) -> None:
    config = make_config(tmp_path, ALL)
    assert config.sft is not None
    acceptance = judge_demonstrations(config, load_demonstrations(config.sft.data))
    assert acceptance.accepted == [0, 5]
    other = acceptance.summary()["sources"]["other"]
    assert other["refused"] == {"language: mixed languages": 1, "repetition": 1}
    assert other["behaviours"] == {"verification": 1.0, "backtracking": 0.0, "subgoals": 0.0}
    assert next(acceptance.lines()) == (
        "other: 1 of 3 demonstrations accepted (refused: 1 language: mixed languages, "
        "1 repetition); behaviours: verification 100%, backtracking 0%, subgoals 0%"
    )


def test_a_verdict_that_is_none_refuses_the_row_and_is_no_number(tmp_path: Path) -> None:
    rows = [ROWS[0], {key: value for key, value in ROWS[0].items() if key != "reference"}]
    assert refused(make_config(tmp_path, {"verify": True}, rows)) == {1: "rule: invalid (error)"}
    with pytest.raises(VerifierUnavailableError, match=r"principles.rule: every demonstration"):
        refused(make_config(tmp_path, {"verify": True}, rows[1:]))


def test_a_route_that_is_none_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[0], "route": "rul"}]
    config = make_config(tmp_path, {"verify": True}, rows)
    with pytest.raises(DataError, match=r"sft\.jsonl:2: column route: 'rul' is no route \(rule\)"):
        refused(config)


def test_what_was_decided_is_kept_though_the_judge_would_decide_otherwise(
    tmp_path: Path, model: Path
) -> None:
    one = {"model": {"path": str(model), "dtype": "float32"}}
    strict = make_config(tmp_path, ALL, **one)
    rows, first = accepted_rows(strict, tmp_path)
    assert first is not None
    again, second = accepted_rows(make_config(tmp_path, {}, **one), tmp_path)
    assert second is not None
    assert second.refused == first.refused
    assert [row.tokens.tolist() for row in again] == [row.tokens.tolist() for row in rows]
    with pytest.raises(NotResumableError, match=r"acceptance\.json does not say"):
        read_acceptance(tmp_path, load_demonstrations(strict.sft.data)[1:])  # type: ignore[union-attr]


def test_long_rows_are_left_out_and_counted(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, {}, model={"path": str(model), "dtype": "float32"})
    assert config.sft is not None
    short = config.model_copy(update={"sft": config.sft.model_copy(update={"max_tokens": 110})})
    rows, acceptance = accepted_rows(short)
    assert acceptance is not None
    assert set(acceptance.refused.values()) == {"too long"}
    assert len(rows) == len(ROWS) - len(acceptance.refused) > 0
    none = config.model_copy(update={"sft": config.sft.model_copy(update={"max_tokens": 5})})
    with pytest.raises(DataError, match="every demonstration is refused"):
        accepted_rows(none)


def test_check_tells_of_the_rows_and_refuses_a_bad_one(tmp_path: Path, model: Path) -> None:
    one = {"model": {"path": str(model), "dtype": "float32"}}
    config = make_config(tmp_path, ALL, **one)
    assert check_data(config) == []
    assert list(stage_lines(config))[-1] == "2 rows, 2 steps"
    with pytest.raises(DataError, match=r"sft\.jsonl:2: column response"):
        check_data(make_config(tmp_path, {}, [ROWS[0], {"prompt": "q"}], **one))


def test_a_filter_that_would_ask_no_principle_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "why?", "response": GOOD}]
    with pytest.raises(DataError, match=r"sft\.filters\.verify: no row of sft\.data has a route"):
        refused(make_config(tmp_path, {"verify": True}, rows))
