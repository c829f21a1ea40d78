"""What the verb ``ledger`` prints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from cluster.ledger_report import Ended, LedgerReport, read_report
from cluster.run_directory import RunDirectory
from cluster.transitions import DropReason, GroupState
from safeladder.errors import AuditError


def ledger_command(run_dir: Path, *, as_json: bool) -> int:
    """Print the accounting of a run. Raises ``AuditError`` if its books are not sound."""
    report = read_report(RunDirectory.open(run_dir))
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1, ensure_ascii=False))
    else:
        _print(report, Console(markup=False, highlight=False))
    if report.violations:
        raise AuditError(f"{run_dir}: {len(report.violations)} invariants of the ledger are broken")
    return 0


def _print(report: LedgerReport, console: Console) -> None:
    states = [f"{report.states[s]} {s}" for s in GroupState if s in report.states]
    console.print(f"{report.issued} groups issued: {', '.join(states) or 'none'}", soft_wrap=True)
    console.print(_lengths(report))
    console.print(f"attempts: {_histogram(report.attempts, 'in attempt')}", soft_wrap=True)
    console.print(f"staleness: {_histogram(report.staleness, 'trained at')}", soft_wrap=True)
    starts = Table("fence", "started", "from step", "taken back", "transitions")
    for start in report.starts:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.unix_s))
        numbers = (start.checkpoint_step, start.taken_back, start.writes)
        starts.add_row(str(start.fence), when, *map(str, numbers))
    console.print(starts)
    batches = report.batches
    if batches.missing:
        steps = ", ".join(map(str, batches.missing[:5]))
        more = " …" if len(batches.missing) > 5 else ""
        console.print(f"batches not there: {len(batches.missing)}, of steps {steps}{more}")
    for violation in report.violations:
        console.print(f"BROKEN: {violation}", soft_wrap=True)
    if not report.violations:
        console.print(f"sound: ledger, history and {batches.num_compared} batches agree")


def _lengths(report: LedgerReport) -> Table:
    """Drop rates by reason and by length; the last line is over all."""
    reasons = [r for r in DropReason if r in report.ended.dropped]
    table = Table("sampled tokens", "groups", "trained", "dropped", *map(str, reasons))
    for decile in report.deciles:
        span = f"{decile.min_tokens} … {decile.max_tokens}"
        table.add_row(f"{decile.number}. {span}", *_cells(decile.ended, reasons))
    if report.never_generated.num_groups:
        table.add_row("never generated", *_cells(report.never_generated, reasons))
    table.add_section()
    table.add_row("all that have ended", *_cells(report.ended, reasons))
    return table


def _cells(ended: Ended, reasons: list[DropReason]) -> list[str]:
    rates = [ended.drop_rate, *(ended.rate(reason) for reason in reasons)]
    return [str(ended.num_groups), str(ended.trained), *(f"{100 * rate:.1f} %" for rate in rates)]


def _histogram(counts: Mapping[int, int], what: str) -> str:
    return ", ".join(f"{count} {what} {value}" for value, count in counts.items()) or "none"
