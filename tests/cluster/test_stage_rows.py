"""Rows of pairs and of returns as a learner is given them, and what is refused at `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rendering import PromptRenderer
from cluster.data_checks import check_data, stage_lines
from cluster.stage_rows import digest_of, load_stage_rows
from safeladder.config import Config
from safeladder.errors import ConfigError, DataError
from tests.tiny_model import save_tiny_model

PAIRS = [{"prompt": f"Say {i}", "chosen": f"{i} it is", "rejected": "no"} for i in range(10)]
RETURNS = [
    {"prompt": "Say 1", "prefix": "1 it", "returns": {"safety": 0.5}},
    {"prompt": "Say 2", "prefix": "", "returns": {"rule": 1.0, "safety": 0.0}},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def make_config(
    folder: Path, model: Path, stage: str, rows: list[dict[str, Any]], **settings: Any
) -> Config:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads = {"principles": ["safety", "rule"]} if stage == "value_model" else {}
    learner = {"micro_batch_tokens": settings.pop("micro_batch_tokens", 256)}
    return Config.model_validate(
        {
            "stage": stage,
            "run": {"name": "rows", "root": str(folder / "runs")},
            "model": {"path": str(model), "dtype": "float32"},
            stage: {"data": [str(path)], **heads, **settings},
            "learner": learner,
        }
    )


def test_a_pair_is_rendered_as_a_prompt_and_its_answers(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, "preference", PAIRS)
    row = load_stage_rows(config).rows[3]
    renderer = PromptRenderer.from_config(config.model)
    assert row.chosen.tolist() == renderer.encode_answer("3 it is").tolist()
    assert row.rejected.tolist() == renderer.encode_answer("no").tolist()
    assert check_data(config) == []
    assert list(stage_lines(config)) == ["10 rows, 1 of them for validation, 6 steps"]


def test_long_answers_are_cut_and_told_and_pairs_that_are_the_same_then_are_left_out(
    tmp_path: Path, model: Path
) -> None:
    same = {"prompt": "Say 1", "chosen": "aaaaaaaaa1", "rejected": "aaaaaaaaa2"}
    config = make_config(tmp_path, model, "preference", [*PAIRS, same])
    longest = load_stage_rows(config).rows[0].prompt_tokens.size + 5
    found = load_stage_rows(make_config(tmp_path, model, "preference", [*PAIRS, same],
                                        cutoff=longest))  # fmt: skip
    assert len(found.rows) == 10
    assert found.rows[0].chosen.size == 5
    assert found.summary["pairs"] == {"read": 11, "cut": 11, "same_up_to_the_cutoff": 1}
    assert found.lines[0].startswith("11 pairs with an answer cut at")


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        ({"cutoff": 12}, DataError, r"rows\.jsonl:1: column prompt: has \d+ tokens and leaves no"),
        ({"micro_batch_tokens": 60}, ConfigError, r"the pair of .*rows\.jsonl:1 needs \d+: the"),
    ],
)
def test_a_pair_that_cannot_be_trained_is_named(
    tmp_path: Path, model: Path, settings: dict[str, Any], kind: type[Exception], told: str
) -> None:
    rows = [{"prompt": "Say it", "chosen": "a" * 20, "rejected": "b" * 20}]
    with pytest.raises(kind, match=told):
        check_data(make_config(tmp_path, model, "preference", rows, **settings))


def test_a_part_of_the_pairs_is_trained_with_a_share_of_the_others(
    tmp_path: Path, model: Path
) -> None:
    rows = [{**pair, "num_constraints": 1 + index % 5} for index, pair in enumerate(PAIRS * 5)]
    easy = {"at_most": 3, "rehearsal": 0.25}
    found = load_stage_rows(make_config(tmp_path, model, "preference", rows, select=easy))
    assert found.summary["pairs"]["selected"] == 30
    assert found.summary["pairs"]["rehearsed"] == 10, "a quarter of 40"
    assert found.lines[0] == (
        "30 of 50 pairs selected by num_constraints, and 10 of the others rehearsed"
    )
    assert len(found.rows) == 40
    again = load_stage_rows(make_config(tmp_path, model, "preference", rows, select=easy))
    assert [row.chosen.tolist() for row in again.rows] == [r.chosen.tolist() for r in found.rows]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ({"at_least": 9}, r"no pair has num_constraints between the bounds; the rows have 1, 2"),
        (
            {"at_least": 1, "column": "k"},
            r"rows\.jsonl:1: column k: preference\.select wants a num",
        ),
    ],
)
def test_a_selection_that_selects_nothing_is_named(
    tmp_path: Path, model: Path, selection: dict[str, Any], told: str
) -> None:
    rows = [{**pair, "num_constraints": 1 + index % 2} for index, pair in enumerate(PAIRS)]
    with pytest.raises(DataError, match=told):
        check_data(make_config(tmp_path, model, "preference", rows, select=selection))


def test_bounds_that_select_nothing_are_refused(tmp_path: Path, model: Path) -> None:
    for bounds, told in (
        ({}, "give at_least or at_most"),
        ({"at_least": 3, "at_most": 2}, "above"),
    ):
        with pytest.raises(ValueError, match=told):
            make_config(tmp_path, model, "preference", PAIRS, select=bounds)


def test_returns_stand_in_the_order_of_the_heads(tmp_path: Path, model: Path) -> None:
    first, second = load_stage_rows(make_config(tmp_path, model, "value_model", RETURNS)).rows
    assert (first.returns.tolist(), first.known.tolist()) == ([0.5, 0.0], [1.0, 0.0])
    assert (second.returns.tolist(), second.known.tolist()) == ([0.0, 1.0], [1.0, 1.0])
    assert (first.tokens.size, second.tokens.size) == (5, 1)
    assert first.loss_mask.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_prefix_that_is_too_long_is_named(tmp_path: Path, model: Path) -> None:
    rows = [RETURNS[1], {**RETURNS[0], "prefix": "a" * 300}]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: prompt and prefix have \d+ tokens"):
        check_data(make_config(tmp_path, model, "value_model", rows))


def test_a_section_without_files_or_rows_is_named(tmp_path: Path, model: Path) -> None:
    config = make_config(tmp_path, model, "preference", PAIRS, data=[])
    with pytest.raises(ConfigError, match=r"preference\.data names no file"):
        check_data(config)


def test_the_digest_knows_rows_order_and_split_but_not_the_epochs(
    tmp_path: Path, model: Path
) -> None:
    config = make_config(tmp_path, model, "preference", PAIRS)
    rows = list(load_stage_rows(config).rows)
    digest = digest_of(config, rows)
    assert digest_of(config, rows[::-1]) != digest
    rows[0].chosen[0] += np.int32(1)
    assert digest_of(config, rows) != digest
    rows[0].chosen[0] -= np.int32(1)
    longer = make_config(tmp_path, model, "preference", PAIRS, epochs=9)
    assert digest_of(longer, rows) == digest
    other = make_config(tmp_path, model, "preference", PAIRS, validation_share=0.5)
    assert digest_of(other, rows) != digest
