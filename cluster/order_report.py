"""The report of an order probe: tables in the terminal, one HTML page. Computes no figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from cluster.html_page import page, section, table
from cluster.line_plot import line_plot
from safeladder.whole_file import write_whole

Figures = Mapping[str, Any]
LEVEL_COLUMNS = ("CDDI", "CLA", "95 %", "ILA", "95 %", "answers", "invalid")

ROUNDING = 1e-9
"""What a regression over equal outcomes leaves of 0."""
MIN_CLUSTERS = 8
"""Seed instructions below which no sentence says that something rises or falls."""


def print_order_report(report: Figures, stream: TextIO) -> None:
    """For each round its levels, and what they say."""
    console = Console(file=stream, highlight=False, markup=False)
    for shape, found in report["rounds"].items():
        shown = Table(title=f"{shape} round, {found['prompts']} prompts")
        for column in LEVEL_COLUMNS:
            shown.add_column(column, justify="right")
        for row in _level_rows(found):
            shown.add_row(*row)
        console.print(shown)
        for sentence in said(found):
            console.print(sentence, soft_wrap=True)


def write_order_report(folder: Path, report: Figures) -> Path:
    """``report.html`` in a folder; returns its path."""
    body = [section("What was asked", _settings(report))]
    for shape, found in report["rounds"].items():
        body.append(section(f"{shape.capitalize()} round", _round(found)))
    body.append(section("Difficulty, hard to easy", _difficulty(report["difficulty"])))
    body.append(section("Answers to the first row", _samples(report["samples"])))
    path = folder / "report.html"
    write_whole(path, [page("Order probe", "".join(body))])
    return path


def said(found: Figures) -> list[str]:
    """What the figures of a round say, in sentences that claim no more than they hold.

    The claim of PBIF has two halves: accuracy rises with CDDI, and it is the order that does it.
    """
    slope, spread, change = found["slope"], found["spread"], found["change_cla"]
    told = [
        f"slope of CLA on CDDI: {_points(slope)} points per unit, p = {_p(slope)}: "
        f"{_verdict(slope['ci95'], found['clusters'], slope['p'])}",
        f"change of CLA from CDDI -1 to +1: {_points(change, 'change')}; of ILA: "
        f"{_points(found['change_ila'], 'change')}",
        f"spread over the levels: {_points(spread, signed=False)}; "
        f"{_share(spread['by_chance'])} if order did nothing (p = {_p(spread)})",
    ]
    interacting = found["regression"]["interacting"]
    if interacting is not None:
        cddi = interacting["cddi"]
        told.append(
            f"effect of CDDI beside type, slot and type x slot: {_points(cddi)} points per unit: "
            f"{_verdict(cddi['ci95'], found['clusters'])}"
        )
    return told


def _verdict(interval: Sequence[float] | None, clusters: int, p: float | None = None) -> str:
    """A bootstrap over a handful of seeds is too sure of itself, so it does not speak alone."""
    if interval is None or clusters < MIN_CLUSTERS:
        return "too few seeds to tell"
    low, high = interval
    if (low <= ROUNDING and high >= -ROUNDING) or (p is not None and p > 0.05):
        return "not told apart from none"
    return "rises" if low > 0 else "falls"


def _round(found: Figures) -> str:
    levels = found["levels"]
    ends = {
        "CLA": [(level["cddi"], _percent(level["cla"])) for level in levels],
        "95 %, low": [(level["cddi"], _end(level["cla_ci95"], 0)) for level in levels],
        "95 %, high": [(level["cddi"], _end(level["cla_ci95"], 1)) for level in levels],
    }
    ila = {"ILA": [(level["cddi"], _percent(level["ila"])) for level in levels]}
    plots = "".join(
        f"<figure>{line_plot(title, lines, 'CDDI')}</figure>"
        for title, lines in (("Constraints passed (%)", ends), ("Instructions passed (%)", ila))
    )
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in said(found))
    counts = f"{found['prompts']} prompts of {found['clusters']} seeds, {found['answers']} answers"
    return (
        f'<p>{counts}</p><ul>{sentences}</ul><div class="plots">{plots}</div>'
        + table(LEVEL_COLUMNS, _level_rows(found), is_numeric=True)
        + "<h3>By group, CDDI -1 to +1</h3>"
        + table(
            ("group", "-1", "+1", "change", "95 %", "prompts", "verdicts"),
            [_change_row(name, row) for name, row in found["groups"].items()],
            is_numeric=True,
        )
        + _regression(found["regression"])
        + _rotations(found["rotations"])
    )


def _level_rows(found: Figures) -> list[tuple[str, ...]]:
    return [
        (
            f"{level['cddi']:+.3f}",
            _share(level["cla"]),
            _interval(level["cla_ci95"]),
            _share(level["ila"]),
            _interval(level["ila_ci95"]),
            str(level["answers"]),
            f"{level['invalid']} of {level['constraints']}",
        )
        for level in found["levels"]
    ]


def _change_row(name: str, row: Figures) -> tuple[str, ...]:
    interval = _interval(row["ci95"], signed=True)
    change = _share(row["change"], signed=True)
    counts = str(row["prompts"]), str(row["verdicts"])
    return name, _share(row["first"]), _share(row["last"]), change, interval, *counts


def _regression(found: Figures) -> str:
    rows = []
    for name in ("additive", "interacting"):
        if (model := found[name]) is None:
            continue
        terms = {"CDDI": model["cddi"]}
        terms |= {f"slot {int(k) + 1}": term for k, term in model["slots"].items()}
        for term, value in terms.items():
            told = _share(value["value"], signed=True), _interval(value["ci95"], signed=True)
            rows.append((f"{name}: {term}", *told))
    note = (
        "<p>Linear models of pass, in points: <em>additive</em> is type + slot + CDDI, "
        "<em>interacting</em> also gives each type a slope of its own along the slots. Slots are "
        f"held against the first. {found['rows']} verdicts; intervals draw whole seeds.</p>"
    )
    head = "<h3>Difficulty or position?</h3>"
    return head + note + table(("term", "points", "95 %"), rows, is_numeric=True) if rows else ""


def _rotations(found: Sequence[Figures]) -> str:
    rows = [
        (f"{row['cddi']:+.3f}", " / ".join("".join(map(str, o)) for o in row["orders"]), *rest[1:])
        for row in found
        for rest in [_change_row("", row)]
    ]
    columns = ("CDDI", "orders (ranks, 0 = hardest)", "first", "second", "change", "95 %")
    note = "<h3>Two orders of one CDDI</h3>"
    more = (*columns, "prompts", "verdicts")
    return note + table(more, rows, is_numeric=True) if rows else ""


def _settings(report: Figures) -> str:
    facts = {name.replace("_", " "): str(value) for name, value in report["settings"].items()}
    facts |= {
        "the template adds": report["template_adds"] or "nothing",
        "trials without an answer": str(report["failures"] or "none"),
        "generation": ", ".join(f"{v} {k}" for k, v in report["generation"].items()),
        "packages": ", ".join(f"{name} {v}" for name, v in report["packages"].items()),
    }
    return table(("", ""), list(facts.items()))


def _difficulty(found: Figures) -> str:
    counts = found["counts"]["types"]
    rows = [(kind, *(f"{number:g}" for number in counts[kind])) for kind in found["hard_to_easy"]]
    note = f"<p>Source: {escape(str(found['source']))}.</p>"
    return note + table(("type", "passed", "of"), rows, is_numeric=True)


def _samples(samples: Sequence[Figures]) -> str:
    marks = {True: "passed", False: "failed", None: "invalid"}
    rows = [
        (
            f"{one['round']}, CDDI {one['cddi']:+.2f}",
            "\n".join(one["turns"]),
            one["answer"],
            "\n".join(f"{kind}: {marks[verdict]}" for kind, verdict in one["passed"].items()),
        )
        for one in samples
    ]
    return table(("", "user", "last answer", "verdicts"), rows)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _end(interval: Sequence[float] | None, index: int) -> float | None:
    return None if interval is None else 100 * interval[index]


def _share(share: float | None, signed: bool = False) -> str:
    return "–" if share is None else f"{100 * share:{'+' if signed else ''}.1f}"


def _interval(interval: Sequence[float] | None, signed: bool = False) -> str:
    return "–" if interval is None else " to ".join(_share(end, signed) for end in interval)


def _points(figure: Figures, key: str = "value", *, signed: bool = True) -> str:
    told = _share(figure[key], signed)
    return f"{told} ({_interval(figure['ci95'], signed)})"


def _p(figure: Figures) -> str:
    return "–" if figure["p"] is None else f"{figure['p']:.3g}"
