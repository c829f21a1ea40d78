"""``evaluate-constraints`` on files of answers and on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from curricula.type_difficulty import TypeDifficulty
from tests.tiny_model import save_tiny_model

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE")
IFEVAL = [
    {
        "key": n,
        "prompt": f"Write about thing {n}.",
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "kwargs": [{}, {}],
    }
    for n in range(4)
]
FOLLOWBENCH = [
    {
        "example_id": example,
        "category": kind,
        "source": source,
        "level": level,
        "instruction": f"{kind} {example}: write{' so' * level}.",
        "target": "(B)" if source == "BBH_logical" else "",
    }
    for kind, example, source in (("situation", 1, "BBH_logical"), ("situation", 2, "vicuna"))
    for level in range(6)
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back in the end what the command sets."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    return


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate-constraints", *map(str, arguments)])
    return result.exit_code, result.output


def answers(path: Path, *texts: str) -> Path:
    pairs = zip(IFEVAL, texts, strict=False)
    return write(path, [{"prompt": row["prompt"], "response": text} for row, text in pairs])


def test_answers_of_a_file_are_scored_and_a_missing_one_is_no_number(tmp_path: Path) -> None:
    data = write(tmp_path / "ifeval.jsonl", IFEVAL)
    given = answers(tmp_path / "a.jsonl", '"tea"', "tea, hot", 'Sure:\n"tea"')
    out = tmp_path / "out"
    code, said = run(data, "--responses", given, "--out", out, "--policy-version", "3")
    assert (code, "1 of 4 instructions have no answer: unscored" in said) == (0, True)
    report = json.loads((out / "report.json").read_text())
    rates = report["ifeval"]["rates"]
    assert rates["constraints_met"] == {"mean": pytest.approx(0.5), "instructions": 3}
    assert report["ifeval"]["reward_floor"] == 1.0
    assert rates["instructions_met"]["mean"] == pytest.approx(1 / 3)
    assert rates["instructions_met_loose"]["mean"] == pytest.approx(2 / 3)
    assert report["ifeval"]["types"]["startend:quotation"] == {
        "judged": 3, "strict": 1, "loose": 2, "masked": 0,
    }  # fmt: skip
    rows = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == ['"tea"', "tea, hot", 'Sure:\n"tea"']
    difficulty = TypeDifficulty.load(json.loads((out / "difficulty.json").read_text()))
    assert difficulty.version == 3
    assert difficulty.ranks(["punctuation:no_comma", "startend:quotation"]) == (1, 0)


def test_two_sets_of_answers_make_a_table_before_and_after(tmp_path: Path) -> None:
    data = write(tmp_path / "ifeval.jsonl", IFEVAL)
    before = answers(tmp_path / "b.jsonl", "a, b", "a, b", "a, b", "a, b")
    after = answers(tmp_path / "a.jsonl", '"a b"', '"a b"', "a b", "a, b")
    code, said = run(data, "--responses", after, "--before", before, "--out", tmp_path / "out")
    assert code == 0
    change = json.loads((tmp_path / "out" / "report.json").read_text())["before_and_after"]
    assert change["constraints_met"]["before"] == 0.0
    assert change["constraints_met"]["after"] == pytest.approx(5 / 8)
    assert change["constraints_met"]["prompts"] == 4
    assert "constraints_met/startend" in change
    assert "+62.5" in said


def test_followbench_is_scored_by_rule_and_by_replies_and_the_rest_waits(tmp_path: Path) -> None:
    data = write(tmp_path / "situation_constraints.jsonl", FOLLOWBENCH)
    given = write(
        tmp_path / "a.jsonl",
        [{"prompt": row["instruction"], "response": "It is (B)."} for row in FOLLOWBENCH],
    )
    out = tmp_path / "out"
    code, said = run(data, "--responses", given, "--out", out)
    assert (code, "5 levels have a rule, 5 wait for a judge" in said) == (0, True)
    part = json.loads((out / "report.json").read_text())["followbench"]
    assert (part["csl"], part["csl_groups"], part["csl_left_out"]) == (5.0, 1, 1)
    lines = (out / "judge_questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    assert [one["key"] for one in questions] == [f"situation/2/{level}" for level in range(1, 6)]
    said_of = ["['YES']", "['YES', 'NO']", "no list", "['YES', 'YES', 'YES', 'YES']"]
    replies = [
        {"question": one["question"], "reply": reply}
        for one, reply in zip(questions, said_of, strict=False)
    ]
    judged = write(tmp_path / "r.jsonl", replies)
    code, said = run(data, "--responses", given, "--judge-replies", judged, "--out", out)
    assert code == 0
    part = json.loads((out / "report.json").read_text())["followbench"]
    assert [row["scored"] for row in part["levels"]] == [2, 2, 1, 2, 1]
    assert [row["hsr"] for row in part["levels"]] == [1.0, 0.5, 1.0, 1.0, 1.0]
    assert part["levels"][1]["ssr"] == pytest.approx(0.75)
    assert (part["csl"], part["csl_groups"]) == (3.0, 2)


def test_a_model_is_asked_once_and_can_be_its_own_judge(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    data = write(tmp_path / "ifeval.jsonl", IFEVAL[:2])
    bench = write(tmp_path / "situation_constraints.jsonl", FOLLOWBENCH[6:])
    asked = ["--engine", "transformers", "--dtype", "float32", "--max-new-tokens", "3"]
    asked += ["--max-prompt-tokens", "1500", "--model", model, "--judge", model]
    out = tmp_path / "out"
    code, said = run(data, bench, "--out", out, *asked)
    assert (code, "0 wait for a judge" in said) == (0, True), said
    report = (out / "report.json").read_text()
    assert json.loads(report)["ifeval"]["answered"] == 2
    assert [row["scored"] for row in json.loads(report)["followbench"]["levels"]] == [0] * 5
    for journal in ("answers.jsonl", "judgments.jsonl"):
        assert len((out / journal).read_text().splitlines()) > 5
    before = {path.name: path.stat().st_size for path in out.iterdir()}
    assert run(data, bench, "--out", out, *asked)[0] == 0
    assert {path.name: path.stat().st_size for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"prompt": "Write about thing 0.", "response": 3}\n', "must be text"),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "c"}\n', "stands twice"),
        ('{"prompt": "a", "respon', "a.jsonl:1: the last line is cut off"),
    ],
)
def test_answers_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, lines: str, told: str
) -> None:
    data = write(tmp_path / "ifeval.jsonl", IFEVAL)
    (tmp_path / "a.jsonl").write_text(lines)
    code, said = run(data, "--responses", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert (code, told in said) == (2, True)
    assert not (tmp_path / "out" / "report.json").exists()


def test_answers_come_from_one_place(tmp_path: Path) -> None:
    data = write(tmp_path / "ifeval.jsonl", IFEVAL)
    code, said = run(data, "--out", tmp_path / "out")
    assert (code, "give --responses FILE or --model FOLDER" in said) == (2, True)


def test_a_folder_that_cannot_be_made_and_faulty_answers_leave_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "ifeval.jsonl", IFEVAL)
    given = answers(tmp_path / "responses.jsonl", "so")
    code, said = run(data, "--responses", given, "--out", data)
    assert code == 2
    assert "--out" in said
    assert "cannot be made" in said
    faulty = write(tmp_path / "faulty.jsonl", [{"prompt": "a", "response": None}])
    code, said = run(data, "--responses", faulty, "--out", tmp_path / "out")
    assert code == 2
    assert "faulty.jsonl:1" in said
    assert not (tmp_path / "out").exists()
