"""The verb ``curriculum``: what a run asked and why, what passed, and what it knows by now."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from cluster.curriculum_state import LAST_STEP, curriculum_state, require_draws
from cluster.ledger_reader import reading
from cluster.run_directory import RunDirectory
from curricula.buckets import bucket_names

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


def read_curriculum(run: RunDirectory) -> CurriculumReport:
    """Read one moment of the ledger. Raises ``ConfigError`` if there was no sampler."""
    order = ("", *bucket_names(run.config().curriculum))
    with reading(run) as ledger:
        require_draws(ledger, run)
        step = ledger.execute(LAST_STEP).fetchone()[0]
        buckets = ledger.execute(_BUCKETS, {"since": step - RECENT_STEPS}).fetchall()
        newest = ledger.execute(_NEWEST, {"newest": NEWEST}).fetchall()
    return CurriculumReport(
        step=step,
        buckets=sorted(
            (_bucket_row(*row) for row in buckets),
            key=lambda row: (row.label, order.index(row.bucket) if row.bucket in order else 0),
        ),
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
