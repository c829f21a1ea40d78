"""``compose hard``: a whole file or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from curricula.prompts import load_prompts
from curricula.type_difficulty import TypeDifficulty
from rewards.constraints.rows import listed, stated


def run(tmp_path: Path, *options: str, seeds: str = '{"prompt": "Tell me."}\n') -> tuple[int, str]:
    (tmp_path / "seeds.jsonl").write_text(seeds)
    given = ["--seeds", str(tmp_path / "seeds.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(app, ["compose", "hard", *given, *options])
    return result.exit_code, result.output


def test_the_rows_are_prompts_that_the_verifier_can_read(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--per-seed", "20", "--constraints", "3")
    assert (code, "20 rows (20 with 3 constraints)" in said) == (0, True)
    assert "CDDI measures nothing" in said
    prompts = load_prompts([tmp_path / "out.jsonl"], ["instruction"])
    assert len(prompts) == 20
    for prompt in prompts:
        assert len(stated(listed(prompt.meta, prompt.reference, "constraints"))) == 3


def test_difficulty_of_the_policy_is_read_from_its_file(tmp_path: Path) -> None:
    counted = TypeDifficulty()
    counted.note(5, ["punctuation:no_comma"] * 9, [False] * 9)
    (tmp_path / "difficulty.json").write_text(json.dumps(counted.dump()))
    types = ["--type", "punctuation:no_comma", "--type", "startend:quotation"]
    fixed = ["--orders", "fixed", "--constraints", "2"]
    code, said = run(
        tmp_path, "--difficulty", str(tmp_path / "difficulty.json"), *types, *fixed, "--round",
        "multi",
    )  # fmt: skip
    assert (code, "measures nothing" in said) == (0, False)
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    first = row["instruction_id_list"][row["presented_order"][0]]
    assert (first, row["difficulty_version"]) == ("punctuation:no_comma", 5)
    assert len(row["turns"]) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--constraints", "many"], "--constraints many: write a number or a range"),
        (["--constraints", "5-1"], "--constraints 5-1: write a number or a range"),
        (["--constraints", "40"], "--constraints 40: no set of 40 constraints without a conflict"),
        (["--type", "no:such"], "--type no:such: is none of"),
        (["--orders", "odd"], "--orders odd: is none of none, fixed, uniform, paired"),
        (["--round", "double"], "--round double: is none of single, multi"),
        (["--cddi", "3"], "--cddi 3: is outside -1 to 1"),
        (["--difficulty", "nowhere.json"], "--difficulty nowhere.json: there is no such file"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, options: list[str], told: str
) -> None:
    code, said = run(tmp_path, *options)
    assert (code, told in said) == (2, True)
    assert not (tmp_path / "out.jsonl").exists()


def test_nothing_is_half_written_when_a_later_row_is_bad(tmp_path: Path) -> None:
    seeds = '{"prompt": "Tell me."}\n{"prompt": "Tell me mo'
    code, said = run(tmp_path, seeds=seeds)
    assert (code, "seeds.jsonl:2: the last line is cut off" in said) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["seeds.jsonl"]


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    assert run(tmp_path)[0] == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    code, said = run(tmp_path)
    assert (code, "is there already" in said) == (2, True)
    assert (tmp_path / "out.jsonl").read_bytes() == before
