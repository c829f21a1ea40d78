"""The report of a study of importance: a table, plots, and the prompts as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from cluster.html_page import page, section, table
from cluster.line_plot import line_plot
from safeladder.whole_file import write_whole

Figures = Mapping[str, Any]
SHADES = 20
"""Steps of color in a heat map."""


def print_importance_report(report: Figures, stream: TextIO) -> None:
    """Shares of the constraints at each level, and what they say."""
    console = Console(file=stream, highlight=False, markup=False)
    columns, rows = _levels(report["figures"])
    shown = Table(title="Share of the importance on constraints, all and by slot, in %")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for sentence in said(report["figures"]):
        console.print(sentence, soft_wrap=True)


def write_importance_report(folder: Path, report: Figures, records: Sequence[Figures]) -> Path:
    """``report.html`` in a folder; returns its path."""
    figures = report["figures"]
    columns, rows = _levels(figures)
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in said(figures))
    facts = {name.replace("_", " "): str(value) for name, value in report["settings"].items()}
    facts["the template adds"] = report["template_adds"] or "nothing"
    lines = {
        f"CDDI {level['cddi']:+.2f}": [(k + 1, _percent(s)) for k, s in enumerate(level["slots"])]
        for level in figures["levels"]
    }
    plot = line_plot("Share of the importance (%)", lines, "slot of the constraint")
    body = [
        section("What was studied", table(("", ""), list(facts.items()))),
        section(
            "Shares of the importance on constraints, all and by slot, in %",
            f"<ul>{sentences}</ul>{table(columns, rows, is_numeric=True)}"
            f'<div class="plots"><figure>{plot}</figure></div>',
        ),
        section("Prompts", "".join(heat_map(record) for record in records)),
    ]
    path = folder / "report.html"
    write_whole(path, [page("Importance of constraints", "".join(body))])
    return path


def heat_map(record: Figures) -> str:
    """The prompt's text as HTML, the darker the more its tokens weigh; constraints underlined, with
    their verdict behind them; then the answer."""
    text = record["text"]
    shade = [0] * len(text)
    top = max(record["weights"], default=0.0) or 1.0
    for (start, end), weight in zip(record["offsets"], record["weights"], strict=True):
        for place in range(start, end):
            shade[place] = max(shade[place], round(SHADES * weight / top))
    slot = [-1] * len(text)
    for index, (start, end) in enumerate(record["constraint_spans"]):
        slot[start:end] = [index] * (end - start)
    parts = []
    for index, places in groupby(range(len(text)), key=lambda place: slot[place]):
        spans = "".join(
            _shaded(text[run[0] : run[-1] + 1], level)
            for level, group in groupby(places, key=lambda place: shade[place])
            for run in [list(group)]
        )
        parts.append(spans if index < 0 else f"<u>{spans}</u>{_mark(record, index)}")
    title = f"<h3>Row {escape(record['prompt'])}, CDDI {record['cddi']:+.2f}</h3>"
    answer = f"<p>Answer:</p><pre>{escape(record['answer'])}</pre>"
    return f'{title}<p class="text">{"".join(parts)}</p>{answer}'


def _shaded(text: str, level: int) -> str:
    if not level:
        return escape(text)
    return f'<span style="background:rgb(213 94 0/{level / SHADES:.2f})">{escape(text)}</span>'


def _mark(record: Figures, index: int) -> str:
    mark = {True: "passed", False: "failed", None: "invalid"}[record["passed"][index]]
    return f"<sub>{mark}, {_share(record['slots'][index]['share'])} %</sub>"


def said(figures: Figures) -> list[str]:
    """What the figures say, in sentences that claim no more than they hold."""
    change, correlation = figures["change"], figures["correlation"]
    low_high = change["ci95"]
    interval = "–" if low_high is None else " to ".join(_share(end, True) for end in low_high)
    told = [
        f"change of the constraints' share from the lowest CDDI to the highest: "
        f"{_share(change['value'], True)} points ({interval}), {change['prompts']} prompts"
    ]
    for name, words in (("plain", "as it is"), ("within_type", "within types")):
        found = correlation[name]
        value = "–" if found["value"] is None else f"{found['value']:+.2f}"
        ends = "–" if found["ci95"] is None else " to ".join(f"{e:+.2f}" for e in found["ci95"])
        told.append(
            f"correlation of a constraint's share with its success, {words}: {value} ({ends}), "
            f"{correlation['constraints']} constraints"
        )
    return told


def _levels(figures: Figures) -> tuple[list[str], list[list[str]]]:
    slots = max(len(level["slots"]) for level in figures["levels"])
    columns = ["CDDI", "trials", "all", *(f"{k + 1}" for k in range(slots))]
    rows = [
        [
            f"{level['cddi']:+.3f}",
            str(level["trials"]),
            _share(level["share"]),
            *(_share(share) for share in level["slots"]),
        ]
        for level in figures["levels"]
    ]
    return columns, rows


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _share(share: float | None, signed: bool = False) -> str:
    return "–" if share is None else f"{100 * share:{'+' if signed else ''}.1f}"
