"""The verb ``curriculum``: what a run asked and why, what passed, and what it knows by now."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.ledger_draws import read_draws
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory
from curricula.sampler import Sampler
from curricula.training_prompts import prompt_source
from safeladder.errors import ConfigError

NEWEST = 10
"""Draws that are shown one by one."""
RECENT_STEPS = 10
"""Passes of so many steps are told apart from all."""

_BUCKETS = """
SELECT label, bucket, count(*), sum(why = 'rehearsal'), sum(state = 'trained'),
    sum(state = 'dropped'), sum(judged), sum(passed),
    sum(judged * (counts_after > :since)), sum(passed * (counts_after > :since))
FROM draws JOIN groups USING (epoch, ordinal) LEFT JOIN outcomes USING (epoch, ordinal)
GROUP BY 1, 2 ORDER BY 1, 2
"""
_NEWEST = """
SELECT epoch || '/' || ordinal, prompt, label, bucket, why, predicted, d.version, state,
    1.0 * passed / judged
FROM draws d JOIN groups USING (epoch, ordinal) LEFT JOIN outcomes USING (epoch, ordinal)
ORDER BY epoch DESC, ordinal DESC LIMIT :newest
"""
_LAST_STEP = "SELECT coalesce(max(step), 0) FROM groups WHERE state = 'trained'"


@dataclass(frozen=True, slots=True)
class BucketRow:
    """One bucket of one label, over the whole run."""

    label: str
    bucket: str
    asked: int
    rehearsed: int
    """Of those asked."""
    trained: int
    dropped: int
    passed: float | None
    """Share of judged siblings; None without any."""
    passed_recently: float | None
    """Of the last steps."""


@dataclass(frozen=True, slots=True)
class DrawRow:
    """One draw, and what came of it."""

    group: str
    prompt: str
    label: str
    bucket: str
    why: str
    predicted: float
    version: int
    """Steps whose outcomes the draw rests on."""
    state: str
    passed: float | None


@dataclass(frozen=True, slots=True)
class CurriculumReport:
    """What a run asked."""

    step: int
    buckets: list[BucketRow]
    newest: list[DrawRow]
    """Newest first."""


def curriculum_command(run_dir: Path, *, as_json: bool, state: bool) -> int:
    """Print the report, or the state for another run."""
    run = RunDirectory.open(run_dir)
    if state:
        typer.echo(json.dumps(curriculum_state(run), ensure_ascii=False))
        return 0
    report = read_curriculum(run)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1, ensure_ascii=False))
    else:
        _print(report, Console(markup=False, highlight=False))
    return 0


def curriculum_state(run: RunDirectory) -> dict[str, Any]:
    """What the run knows of its prompts at its last step, as plain JSON data: what
    ``curriculum.carried`` of another run reads. Raises ``ConfigError`` for a run without a sampler,
    ``DataError`` if its data cannot be read any more."""
    source = prompt_source(run.config())
    if not isinstance(source, Sampler):
        raise ConfigError(f"{run.path}: has no curriculum, mixture or weights; its order is plain")
    with reading(run) as ledger:
        _require_draws(ledger, run)
        source.restore(read_draws(ledger, ledger.execute(_LAST_STEP).fetchone()[0]))
    return source.dump()


def read_curriculum(run: RunDirectory) -> CurriculumReport:
    """Read one moment of the ledger. Raises ``ConfigError`` if there was no sampler."""
    with reading(run) as ledger:
        _require_draws(ledger, run)
        step = ledger.execute(_LAST_STEP).fetchone()[0]
        buckets = ledger.execute(_BUCKETS, {"since": step - RECENT_STEPS}).fetchall()
        newest = ledger.execute(_NEWEST, {"newest": NEWEST}).fetchall()
    return CurriculumReport(
        step=step,
        buckets=[_bucket_row(*row) for row in buckets],
        newest=[DrawRow(*facts) for facts in newest],
    )


def _bucket_row(
    label: str,
    bucket: str,
    asked: int,
    rehearsed: int,
    trained: int,
    dropped: int,
    judged: int | None,
    passed: int | None,
    late_judged: int | None,
    late_passed: int | None,
) -> BucketRow:
    shares = _share(passed, judged), _share(late_passed, late_judged)
    return BucketRow(label, bucket, asked, rehearsed, trained, dropped, *shares)


def _require_draws(ledger: sqlite3.Connection, run: RunDirectory) -> None:
    tables = {name for (name,) in ledger.execute("SELECT name FROM sqlite_master")}
    if "draws" not in tables or not ledger.execute("SELECT 1 FROM draws LIMIT 1").fetchone():
        raise ConfigError(
            f"{run.path}: nothing was drawn: its prompts are asked in a plain order, or training "
            "has not begun"
        )


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if whole and part is not None else None


def _print(report: CurriculumReport, console: Console) -> None:
    total = sum(row.asked for row in report.buckets)
    console.print(f"{total} groups drawn, {report.step} steps")
    recent = f"last {RECENT_STEPS} steps"
    table = Table(
        "label", "bucket", "asked", "share", "rehearsal", "trained", "dropped", "passed", recent
    )
    for row in report.buckets:
        shares = (_percent(row.asked / total), _percent(row.rehearsed / row.asked))
        counts = (str(row.trained), str(row.dropped))
        passed = (_percent(row.passed), _percent(row.passed_recently))
        table.add_row(row.label, row.bucket or "all", str(row.asked), *shares, *counts, *passed)
    console.print(table)
    draws = Table("group", "prompt", "label", "bucket", "why", "predicted", "is", "passed")
    for draw in report.newest:
        places = (draw.group, draw.prompt, draw.label, draw.bucket or "all", draw.why)
        draws.add_row(*places, _percent(draw.predicted), draw.state, _percent(draw.passed))
    console.print(draws)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
