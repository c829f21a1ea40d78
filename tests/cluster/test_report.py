import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cluster.line_plot import Points, line_plot
from cluster.report import print_summary, write_report, write_summary
from cluster.run_directory import RunDirectory
from safeladder.config import Config
from safeladder.errors import EnvironmentUnfitError

SUMMARY: dict[str, Any] = {
    "safe_rate": {
        "after_sft": 0.05,
        "before": 0.2,
        "after": 0.7,
        "ci95": [0.4, 0.6],
        "prompts": 120,
    },
    "helpful_rate": {"before": 0.9, "after": 0.89, "ci95": [-0.04, 0.02], "prompts": 140},
    "groups_dropped": {"filtered": 20, "stale": 1},
    "groups_trained": 960,
    "wall_s": 712.3,
    "peak_pss_bytes": 2**33,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    config = Config.model_validate(
        {
            "run": {"name": "demo", "steps": 3, "root": str(tmp_path)},
            "model": {"path": "models/tiny"},
            "data": {"train": ["train.jsonl"]},
            "principles": {"safety": {"verifier": "a:B", "options": {"api_key": "sk-secret"}}},
            "routes": {"safety": {"safety": 1.0}},
        }
    )
    run = RunDirectory.create(config)
    rows = [
        {"kind": "train", "train/step": i, "reward/safety": i / 10, "reward/mean": i / 5}
        for i in range(1, 4)
    ]
    alert = {"kind": "alert", "alert": "actor", "text": "r0 is lost"}
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in [*rows, alert]))
    sample = {
        "train/step": 3, "prompt": "<script>alert(1)</script>", "response": "x & <b>y</b>",
        "reward": None, "verdicts": {"safety": "Unsafe"},
    }  # fmt: skip
    run.samples.write_text(json.dumps(sample) + "\n")
    write_summary(run, SUMMARY)
    return run


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_file_without_scripts_or_outside_assets(run: RunDirectory) -> None:
    assert write_report(run) == run.report
    page = Reader(run.report.read_text("utf-8"))
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in run.report.read_text("utf-8")
    assert page.tags.count("svg") == 2


def test_the_report_tells_rates_facts_alerts_samples_and_config(run: RunDirectory) -> None:
    text = Reader(write_report(run).read_text("utf-8")).text
    for part in (
        "safe rate", "70.0 %", "+50.0", "+40.0 to +60.0", "filtered: 20, stale: 1", "r0 is lost",
        "712 s (11.9 min)", "8.00 GiB", "safety: Unsafe", "max_staleness: 1", "Reward by principle",
    ):  # fmt: skip
        assert part in text


def test_texts_are_escaped_and_secrets_masked(run: RunDirectory) -> None:
    source = write_report(run).read_text("utf-8")
    assert "<script>" not in source
    assert "&lt;script&gt;" in source
    assert "x &amp; &lt;b&gt;y" in source
    assert "sk-secret" not in source


def test_texts_can_be_left_out(run: RunDirectory) -> None:
    text = Reader(write_report(run, redact=True).read_text("utf-8")).text
    assert "[25 characters]" in text
    assert "alert(1)" not in text


def test_a_run_that_ended_early_still_gets_a_report(run: RunDirectory) -> None:
    for path in (run.summary, run.metrics, run.samples):
        path.unlink()
    page = Reader(write_report(run).read_text("utf-8"))
    assert "max_staleness: 1" in page.text
    assert "svg" not in page.tags


def test_the_summary_is_json_with_rates_and_facts(run: RunDirectory) -> None:
    assert json.loads(run.summary.read_text()) == SUMMARY


def test_the_table_in_the_terminal_speaks_in_points() -> None:
    stream = io.StringIO()
    print_summary(SUMMARY, stream)
    shown = stream.getvalue()
    for part in ("after SFT", "5.0 %", "20.0 %", "70.0 %", "+50.0", "-4.0 to +2.0", "140"):
        assert part in shown
    assert "groups trained: 960" in shown


def drawn(series: dict[str, Points]) -> tuple[ElementTree.Element, list[str]]:
    root = ElementTree.fromstring(line_plot("A <plot>", series, "step"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [p.get("d", "") for p in root.iter(f"{space}path") if p.get("class") == "line"]
    return root, lines


def test_a_line_rises_with_its_values_inside_the_drawing() -> None:
    root, (line,) = drawn({"a": [(0, 0.0), (1, 1.0), (2, 4.0)]})
    points = [tuple(map(float, p.split(" "))) for p in line.replace("h0", "")[1:].split("L")]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_a_missing_value_breaks_the_line_and_a_lone_point_is_a_dot() -> None:
    _, (line,) = drawn({"a": [(0, 1.0), (1, None), (2, math.nan), (3, 2.0), (4, 2.5)]})
    assert (line.count("M"), line.count("h0"), line.count("L")) == (2, 2, 1)


def test_a_plot_says_in_words_where_each_line_starts_and_ends() -> None:
    root, lines = drawn({"a": [(1, 0.5), (9, 1.5)], "b": [(1, 2.0), (9, 2.0)]})
    texts = {child.tag.rpartition("}")[2]: child.text for child in root}
    assert texts["title"] == "A <plot>"
    assert texts["desc"] == "a: from 0.5 at 1 to 1.5 at 9; b: from 2 at 1 to 2 at 9"
    assert len(lines) == 4


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e12])
def test_a_constant_line_is_drawn(value: float) -> None:
    _, lines = drawn({"a": [(1, value), (2, value)]})
    assert "nan" not in lines[0]


def test_no_points_no_plot() -> None:
    assert line_plot("t", {"a": [(1, None)], "b": []}, "step") == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b"[1]\n5\n"),
        ("metrics.jsonl", b'\xff\n{"kind": "train"}\n' + b"[" * 50_000 + b"\n"),
        (
            "metrics.jsonl",
            b'{"kind": "train", "train/step": "x", "reward/mean": "a"}\n'
            b'{"kind": "train", "train/step": 1, "reward/mean": "a"}\n'
            b'{"kind": "train", "train/step": 2, "reward/mean": null}\n',
        ),
        ("summary.json", b'{"a":'),
        ("summary.json", b"[]"),
        ("summary.json", b"\xff"),
        ("summary.json", b'{"x": {"before": 1, "after": 2}}'),
        ("summary.json", b'{"x": {"before": "1", "after": 2, "ci95": [0, 1]}}'),
        ("summary.json", b'{"x": {"before": 1, "after": 2, "ci95": 5}}'),
        ("samples.jsonl", b"5\n"),
        ("samples.jsonl", b'{"prompt": 1, "reward": "x", "verdicts": [1]}\n'),
        ("samples.jsonl", b'{"prompt": "\\ud800"}\n'),
    ],
)
def test_a_report_passes_over_what_it_cannot_read(
    run: RunDirectory, name: str, content: bytes
) -> None:
    (run.path / name).write_bytes(content)
    page = Reader(write_report(run).read_text("utf-8"))
    assert "max_staleness: 1" in page.text


def test_a_report_that_cannot_be_written_says_so(run: RunDirectory) -> None:
    run.report.mkdir()
    with pytest.raises(EnvironmentUnfitError, match=r"report\.html cannot be written"):
        write_report(run)
