"""A whole study of importance on a tiny model, and its page."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.importance_report import heat_map
from tests.constraint_rows import HARD, write_rows
from tests.tiny_model import save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # put back what the command sets


def run(model: Path, folder: Path, *more: str) -> tuple[int, str]:
    write_rows(folder / "rows.jsonl")
    (folder / "hard.json").write_text(json.dumps(HARD))
    arguments = ["probe", "importance", str(model), "--prompts", str(folder / "rows.jsonl")]
    arguments += ["--difficulty", str(folder / "hard.json"), "--out", str(folder / "out")]
    arguments += ["--num-prompts", "2", "--max-new-tokens", "4", *more]
    found = CliRunner().invoke(app, arguments)
    return found.exit_code, found.output


def test_a_study_reports_shares_by_level_and_goes_on(model_path: Path, tmp_path: Path) -> None:
    code, text = run(model_path, tmp_path)
    assert code == 0, text
    report = json.loads((tmp_path / "out/report.json").read_text())
    levels = report["figures"]["levels"]
    assert [level["cddi"] for level in levels] == pytest.approx([-1, -1 / 3, 1])
    assert [level["trials"] for level in levels] == [2, 2, 2]
    for level in levels:
        assert 0 < level["share"] < 1
        assert sum(level["slots"]) == pytest.approx(level["share"])
    assert report["trials"][0]["types"] == list(HARD["types"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/importance").iterdir()}
    assert len(files) == 6
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<h3>Row") == 6
    assert run(model_path, tmp_path)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    code, text = run(model_path, tmp_path, "--max-new-tokens", "5")
    assert code == 2
    assert "other settings" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--levels", "2"), "numbers from -1 to 1"),
        (("--levels", "x"), "numbers from -1 to 1"),
        (("--density-threshold", "10"), "threshold 10"),
    ],
)
def test_a_wrong_option_is_named(
    model_path: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, text = run(model_path, tmp_path, *options)
    assert code == 2
    assert message in text


def test_the_heat_map_shows_the_whole_text_and_marks_each_constraint() -> None:
    record = {
        "prompt": "7",
        "cddi": 1.0,
        "text": "a <b> cc.",
        "offsets": [(0, 1), (1, 5), (5, 8), (8, 9)],
        "weights": [0.0, 1.0, 0.5, 0.0],
        "constraint_spans": [(2, 5), (6, 8)],
        "passed": [True, None],
        "slots": [{"share": 0.25}, {"share": None}],
        "answer": "<i>",
    }
    html = heat_map(record)
    text = unescape(re.sub(r"<sub>.*?</sub>|<[^>]*>", "", html))
    assert "a <b> cc." in text
    assert text.endswith("<i>")
    assert re.findall("<sub>(.*?)</sub>", html) == ["passed, 25.0 %", "invalid, – %"]
    assert html.count("<u>") == 2
    assert "/1.00)" in html
    assert "/0.50)" in html
