"""Our published reading against independent checkers, and what is made of a disagreement."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from evals.constraint_agreement import (
    PEERS,
    PYTHON,
    ask_peer,
    compare_verdicts,
    main,
    read_checked,
    table_text,
)
from safeladder.errors import ConfigError, DataError
from tests.rewards.test_constraint_types import CASES

ROOT = Path(__file__).parents[2]
LETTER = "keywords:letter_frequency"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(name: str, kwargs: dict[str, Any], response: str) -> dict[str, Any]:
    return {"instruction_id_list": [name], "kwargs": [kwargs], "response": response}


@pytest.mark.process
@pytest.mark.parametrize("peer", PEERS)
def test_every_hand_written_case_has_the_verdict_of_independent_checkers(
    peer: str, tmp_path: Path
) -> None:
    if not (ROOT / PYTHON).exists():
        pytest.skip("the peers are not installed: make constraint-peers")
    rows = [row(name, kwargs, text) for name, kwargs, *texts in CASES for text in texts]
    checked = read_checked(write(tmp_path / "rows.jsonl", *rows))
    table, differing = compare_verdicts(
        checked, {peer: ask_peer(peer, str(ROOT / PYTHON), checked)}
    )
    assert len(table) == 25
    assert all(0 < counts.met < counts.checks for counts in table.values())
    # A bracket too many: Python's parser runs out of stack, which the peers do not expect.
    known = [one for one in differing if one["why"]]
    assert [one for one in differing if not one["why"]] == []
    assert {one["id"] for one in known} <= {LETTER, "detectable_format:json_format"}


def test_agreement_is_counted_by_type_and_disagreements_are_listed(tmp_path: Path) -> None:
    few = {"letter": "#", "let_frequency": 1, "let_relation": "less than"}
    checked = read_checked(
        write(
            tmp_path / "rows.jsonl",
            row("punctuation:no_comma", {}, "a, b"),
            row("punctuation:no_comma", {}, "<think>a, b</think>a b"),
            row(LETTER, few, "a b"),
            row("keywords:existence", {"keywords": ["(C"]}, "a b"),
        )
    )
    assert [one.ours for one in checked] == [False, True, True, None]
    assert checked[1].text == "a b"
    table, differing = compare_verdicts(checked, {"p": [False, False, False, "re.error: odd"]})
    comma = table["punctuation:no_comma"]
    assert (comma.checks, comma.met, comma.agree["p"], comma.failed["p"]) == (2, 1, 1, 0)
    assert table["keywords:existence"].failed["p"] == 1
    assert [(one["id"], one["why"]) for one in differing] == [
        ("punctuation:no_comma", ""),
        (LETTER, "the peer draws a letter at random for one that is not a to z"),
        ("keywords:existence", "both rules fail on it"),
    ]
    assert "| punctuation:no_comma | 2 | 1 | 1 |" in table_text(table, ["p"])
    assert "| all | 4 | 2 | 1 |" in table_text(table, ["p"])


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row("punctuation:no_comma", {}, "a"), {"response": 3})
    with pytest.raises(DataError, match=r"^rows.jsonl:2: "):
        read_checked(path)


def test_a_peer_that_does_not_run_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", row("punctuation:no_comma", {}, "a"))
    with pytest.raises(ConfigError, match="--peer lm-eval=/nowhere/python: failed"):
        ask_peer("lm-eval", "/nowhere/python", read_checked(path))
    assert main(["--responses", str(path), "--peer", f"other={sys.executable}"]) == 2
    assert "NAME being one of if-verifiable, lm-eval" in capsys.readouterr().err
