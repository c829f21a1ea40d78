"""Seeds to preference pairs, with models that follow a script."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from curricula.demonstrations import load_demonstrations

from .scripted_chat import ASKED, model

SEEDS = [{"instruction": "Tell a joke.", "input": ""}, {"id": "two", "prompt": "Name a river."}]


@pytest.fixture(autouse=True)
def forget() -> None:
    ASKED.clear()


def compose(folder: Path, rows: list[dict[str, Any]] | str = SEEDS, **config: Any) -> Any:
    """The command's result on a config in ``folder``."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "seeds.jsonl").write_text(text)
    tree = {
        "seeds": str(folder / "seeds.jsonl"),
        "out": str(folder / "out"),
        "num_constraints": 3,
        "soft_only": True,
        "writer": model(),
        "judge": model(),
    }
    (folder / "soft.yaml").write_text(yaml.safe_dump(tree | config))
    return CliRunner().invoke(app, ["compose", "soft", str(folder / "soft.yaml")])


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "out" / f"{name}.jsonl").read_text().splitlines()
    ]


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    return found


def test_each_constraint_makes_a_pair_whose_winner_goes_on(tmp_path: Path) -> None:
    assert compose(tmp_path).exit_code == 0
    pairs = [row for row in rows(tmp_path, "pairs") if row["id"].startswith("two/")]
    assert [row["num_constraints"] for row in pairs] == [1, 2, 3]
    prompts = [row["prompt"] for row in pairs]
    assert all(long.startswith(short[:-1]) for short, long in pairwise(prompts))
    assert [row["chosen"] for row in pairs] == [f"An answer to: {text}" for text in prompts]
    assert [row["rejected"] for row in pairs][1:] == [row["chosen"] for row in pairs][:-1]
    (shown,) = [row for row in rows(tmp_path, "sft") if row["id"] == "two"]
    assert (shown["prompt"], shown["response"]) == (prompts[-1], pairs[-1]["chosen"])
    assert report(tmp_path)["agreement"] == 1.0
    assert len(load_demonstrations([tmp_path / "out" / "sft.jsonl"])) == 2


def test_a_composition_that_was_ended_asks_for_the_missing_replies_only(tmp_path: Path) -> None:
    compose(tmp_path)
    whole, asked = {n: rows(tmp_path, n) for n in ("pairs", "sft", "chains")}, len(ASKED)
    replies = tmp_path / "out" / "replies.jsonl"
    lines = replies.read_bytes().splitlines(keepends=True)
    replies.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    ASKED.clear()
    assert compose(tmp_path).exit_code == 0
    assert 0 < len(ASKED) < asked
    assert {name: rows(tmp_path, name) for name in whole} == whole


@pytest.mark.parametrize("mode", ["reply", "logits"])
def test_a_judge_that_always_says_a_makes_no_pair(tmp_path: Path, mode: str) -> None:
    assert compose(tmp_path, judge=model(judge="A") | {"mode": mode}).exit_code == 0
    assert rows(tmp_path, "pairs") == []
    found = report(tmp_path)
    assert (found["agreement"], found["always_first"]) == (0.0, 1.0)
    assert rows(tmp_path, "sft") == [], "nobody has held these answers against a constraint"


def test_a_judge_whose_reply_says_nothing_is_counted_as_invalid(tmp_path: Path) -> None:
    assert compose(tmp_path, judge=model(judge="Both are fine")).exit_code == 0
    found = report(tmp_path)
    assert (found["pairs"], found["invalid"], found["agreement"]) == (0, 6, None)


def test_a_rewriter_that_returns_broken_json_costs_its_constraints(tmp_path: Path) -> None:
    result = compose(tmp_path, rewriter=model(rewriter='{"added_constraint": "Be'))
    assert result.exit_code == 4
    assert "none of 2 seeds could be composed" in result.stderr
    assert "no constraint could be written" in result.stderr
    assert sum(report(tmp_path)["constraints_refused"].values()) == 6
    ASKED.clear()
    assert compose(tmp_path, rewriter=model(rewriter="{"), soft_only=False).exit_code == 0
    assert all(c["id"] for row in rows(tmp_path, "chains") for c in row["constraints"])


def test_blank_answers_make_no_pair_and_no_demonstration(tmp_path: Path) -> None:
    assert compose(tmp_path, writer=model(writer=" \n")).exit_code == 0
    assert (rows(tmp_path, "pairs"), rows(tmp_path, "sft")) == ([], [])
    assert report(tmp_path)["steps"] == {"blank": 6}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"instruction": 3}, "seeds.jsonl:1: column instruction: must be text"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "seeds.jsonl:1: column messages"),
        ({"text": "x"}, "seeds.jsonl:1: column prompt is missing"),
    ],
)
def test_a_bad_seed_is_named_before_any_model_is_asked(
    tmp_path: Path, bad: dict[str, Any], told: str
) -> None:
    result = compose(tmp_path, [bad])
    assert (result.exit_code, ASKED) == (2, [])
    assert told in result.stderr


def test_a_cut_last_line_of_the_seeds_is_named(tmp_path: Path) -> None:
    result = compose(tmp_path, json.dumps(SEEDS[1]) + '\n{"prompt": "Na')
    assert result.exit_code == 2
    assert "seeds.jsonl:2: the last line is cut off" in result.stderr


def test_a_key_that_does_not_exist_gets_the_nearest_one(tmp_path: Path) -> None:
    result = compose(tmp_path, writer=model() | {"timeout": 3})
    assert result.exit_code == 2
    assert (
        "writer.timeout is not a key of the config; did you mean writer.timeout_s?" in result.stderr
    )


def test_what_cannot_be_composed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    said = compose(tmp_path, num_constraints=40)
    assert said.exit_code == 2
    assert "num_constraints" in said.output
    said = compose(tmp_path, writer={"endpoint": "ftp://x", "model": "m"})
    assert said.exit_code == 2
    assert "writer" in said.output
    assert "ftp://x" in said.output
    assert not (tmp_path / "out").exists()
