"""The end of a run: ``summary.json``, a table in the terminal, one HTML file.

Reads what the run wrote and draws it; computes no metric. The HTML needs nothing beside itself: its
plots are inline SVG, texts of prompts and answers are escaped, and can be left out (redacted).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from cluster.history import AXES, read_history, read_lines
from cluster.html_page import page, section, table
from cluster.line_plot import Points, line_plot
from cluster.run_directory import RunDirectory, write_json
from cluster.terminal import NO_PRINCIPLES
from safeladder.config_loading import shareable, to_yaml
from safeladder.errors import EnvironmentUnfitError
from safeladder.paths import read_bytes

log = logging.getLogger(__name__)

Row = Mapping[str, Any]

MAX_SAMPLES = 40
"""Newest sample completions in the report."""


def _is(name: str) -> Callable[[str], bool]:
    return lambda metric: metric == name


def _of_fleets(figure: str) -> Callable[[str], bool]:
    return lambda metric: metric.startswith("fleet/") and metric.endswith(f"/{figure}")


PLOTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Reward by principle", lambda m: m.startswith("reward/") and m not in NO_PRINCIPLES),
    ("Combined reward", _is("reward/mean")),
    ("Staleness (versions)", lambda m: "staleness" in m),
    ("KL (nats per token)", lambda m: "kl" in m.rpartition("/")[2].split("_")),
    ("Generated tokens per second", _is("rollout/tokens_per_s")),
    ("Tokens per second, by fleet", _of_fleets("tokens_per_s")),
    ("Share of time busy, by fleet", _of_fleets("busy")),
    ("Share of the cache in use, by fleet", _of_fleets("kv")),
    ("Completion length (tokens)", lambda m: "length" in m),
    ("Seconds per step", lambda m: m in ("time/step_s", "time/train_s", "learner/wait_s")),
    ("Share of the engines' time", lambda m: m.startswith("engines/")),
    ("Loss", lambda m: m in ("train/loss", "train/policy_loss")),
    ("Gradient norm", lambda m: m.startswith("train/grad")),
    ("Dropped groups, by reason", lambda m: m.startswith("dropped/")),
    ("Invalid verdicts, by cause", lambda m: m.startswith("invalid/")),
    ("Disagreement of quorums", lambda m: m.startswith("disagreement/")),
)
"""Title → which metrics of a training row it shows; one without any is left out."""


def write_summary(run: RunDirectory, summary: Row) -> None:
    """``summary.json``: rates as {before, after, ci95}, and the facts of the run."""
    write_json(run.summary, dict(summary))


def print_summary(summary: Row, stream: TextIO) -> None:
    """The table before and after, in points, and the facts of the run."""
    rates = _rates(summary)
    console = Console(file=stream, highlight=False, markup=False)
    if rates:
        columns = _rate_columns(rates)
        table = Table(title="Held-out prompts, greedy")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for name, change in rates.items():
            table.add_row(*_rate_cells(name, change, columns))
        console.print(table)
    for name, value in _facts(summary).items():
        console.print(f"{name}: {value}")


def write_report(run: RunDirectory, *, redact: bool = False) -> Path:
    """``report.html`` from whatever the run has written so far; returns its path."""
    history = read_history(run.path)
    summary = _read_summary(run.summary)
    samples = read_lines(run.samples)[-MAX_SAMPLES:]
    body = [
        section("Before and after", _rate_table(_rates(summary))),
        section("Facts", _pairs(_facts(summary))),
        section("Training", _plots(history.get("train", []))),
        section("Alerts", _alerts(history.get("alert", []))),
        section("Sample completions, newest last", _samples(samples, redact)),
        section("Configuration", f"<pre>{escape(_config_text(run))}</pre>"),
    ]
    text = page(f"Run {run.path.name}", "".join(body))
    try:
        run.report.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise EnvironmentUnfitError(f"{run.report} cannot be written: {error.strerror}") from None
    return run.report


def _read_summary(path: Path) -> Row:
    """The summary; empty if there is none, or none that can be read."""
    try:
        summary = json.loads(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        log.warning("%s: passed over, since it cannot be read: %s", path, error)
        return {}
    return summary if isinstance(summary, dict) else {}


def _config_text(run: RunDirectory) -> str:
    return to_yaml(shareable(run.config()))


def _rates(summary: Row) -> dict[str, Row]:
    return {
        name: value
        for name, value in summary.items()
        if isinstance(value, Mapping) and _is_rate(value)
    }


def _is_rate(change: Row) -> bool:
    """Whether a value of the summary has what a line of the table needs."""
    interval = change.get("ci95")
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return False
    shares = [change.get("before"), change.get("after"), change.get("after_sft", 0), *interval]
    return all(isinstance(share, int | float) for share in shares)


def _facts(summary: Row) -> dict[str, str]:
    """Everything in the summary but the rates, in words."""
    rates = _rates(summary)
    return {
        name.replace("_", " "): _in_words(name, value)
        for name, value in summary.items()
        if name not in rates
    }


def _in_words(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_in_words('', item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(str(item) for item in value) or "none"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 2**30:.2f} GiB"
    if name.endswith("_s") and isinstance(value, int | float):
        return f"{value:.0f} s ({value / 60:.1f} min)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _rate_columns(rates: Mapping[str, Row]) -> list[str]:
    rung = ["after SFT"] if any("after_sft" in change for change in rates.values()) else []
    return ["rate", "before", *rung, "after", "change", "95 % interval", "prompts"]


def _rate_cells(name: str, change: Row, columns: Sequence[str]) -> list[str]:
    low, high = change["ci95"]
    cells = {
        "rate": name.replace("_", " "),
        "before": f"{100 * change['before']:.1f} %",
        "after SFT": f"{100 * change['after_sft']:.1f} %" if "after_sft" in change else "",
        "after": f"{100 * change['after']:.1f} %",
        "change": f"{100 * (change['after'] - change['before']):+.1f}",
        "95 % interval": f"{100 * low:+.1f} to {100 * high:+.1f}",
        "prompts": str(change.get("prompts", "")),
    }
    return [cells[column] for column in columns]


def _rate_table(rates: Mapping[str, Row]) -> str:
    columns = _rate_columns(rates)
    rows = [_rate_cells(name, change, columns) for name, change in rates.items()]
    note = "<p>Changes and intervals are in points; intervals are paired bootstraps.</p>"
    return table(columns, rows, is_numeric=True) + note if rows else ""


def _pairs(facts: Mapping[str, str]) -> str:
    return table(("", ""), list(facts.items())) if facts else ""


def _plots(rows: Sequence[Row]) -> str:
    axis = AXES["train"]
    metrics = sorted({metric for row in rows for metric in row})
    plots = []
    for title, belongs in PLOTS:
        lines: dict[str, Points] = {
            metric.partition("/")[2]: [
                (row[axis], row[metric])
                for row in rows
                if isinstance(row.get(metric), int | float | None) and metric in row
            ]
            for metric in metrics
            if belongs(metric)
        }
        plots.append(line_plot(title, lines, "optimizer step"))
    drawn = "".join(f"<figure>{plot}</figure>" for plot in plots if plot)
    return f'<div class="plots">{drawn}</div>' if drawn else ""


def _alerts(rows: Sequence[Row]) -> str:
    cells = [(str(row.get("alert", "")), str(row.get("text", ""))) for row in rows]
    return table(("kind", "what"), cells) if cells else ""


def _samples(samples: Sequence[Row], redact: bool) -> str:
    """Step, prompt, answer, reward and what each principle said."""
    rows = []
    for sample in samples:
        prompt, response = (str(sample.get(name, "")) for name in ("prompt", "response"))
        if redact:
            prompt, response = (f"[{len(text)} characters]" for text in (prompt, response))
        said = sample.get("verdicts")
        pairs = said.items() if isinstance(said, dict) else ()
        verdicts = "\n".join(f"{principle}: {label}" for principle, label in pairs)
        step, reward = sample.get("train/step", ""), sample.get("reward")
        shown = f"{reward:.3f}" if isinstance(reward, int | float) else ""
        rows.append((str(step), prompt, response, shown, verdicts))
    columns = ("step", "prompt", "answer", "reward", "verdicts")
    return table(columns, rows) if rows else ""
