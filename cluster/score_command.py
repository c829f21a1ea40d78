"""What the verbs ``score`` and ``verdicts`` print."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections import Counter, deque
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from cluster.checks import check_routes
from cluster.offline_scoring import PrincipleSummary, ScoredFile, score_file, verdict_row
from cluster.replay import ReplayedSample, by_reason, replay
from cluster.run_directory import RunDirectory
from cluster.verdict_log import LoggedVerdict, parse_group, read_verdicts
from safeladder.config import Config
from safeladder.errors import ConfigError, ReplayError, VerifierUnavailableError
from safeladder.paths import PathError, kind_of
from safeladder.records import Verdict, VerdictStatus

BARS = " ▁▂▃▄▅▆▇█"


def score_command(config: Config, file: Path, out: Path | None, limit: int | None) -> int:
    """Score a file, print one line for each principle, write verdicts to ``out``.

    What can be known to be wrong is refused before any verifier is asked. Raises as ``score_file``,
    and ``VerifierUnavailableError`` if a principle has nothing but INVALID verdicts.
    """
    check_routes(config)
    if out is not None:
        _check_out(out, file)
    scored = asyncio.run(score_file(config, file, limit))
    if out is not None:
        _write(scored, out)
    console = Console(markup=False)
    table = Table(
        "principle", "rows", "mean", "scores 0 … 1", "not applicable", "invalid", "disagreement"
    )
    for line in scored.summaries():
        causes = ", ".join(f"{cause} {n}" for cause, n in sorted(line.invalid.items()))
        table.add_row(
            line.principle,
            str(line.rows),
            "-" if line.mean is None else f"{line.mean:.3f}",
            bars(line.histogram),
            str(line.not_applicable or ""),
            causes,
            "" if line.disagreement is None else f"{line.disagreement:.3f}",
        )
    console.print(table)
    for line in scored.summaries():
        console.print(f"{line.principle}: {line.verifier}", highlight=False, soft_wrap=True)
        for cause, reason in sorted(line.reasons.items()):
            said = f"  INVALID ({cause}), such as {reason}"
            console.print(said, highlight=False, soft_wrap=True)
    known = [reward for reward in scored.rewards.values() if reward is not None]
    mean = f"mean {sum(known) / len(known):.3f}" if known else "none"
    console.print(f"reward: {mean} on {len(known)} of {len(scored.rewards)} rows{_rule(config)}")
    _require_verdicts(scored.summaries())
    return 0


def verdicts_command(
    run_dir: Path,
    group: str | None,
    step: int | None,
    principle: str | None,
    status: str | None,
    *,
    limit: int,
    as_json: bool,
) -> int:
    """Print the newest verdicts that were asked for, and how many there are of each status."""
    if status is not None and status not in list(VerdictStatus):
        raise ConfigError(f"--status {status!r} is none of {', '.join(VerdictStatus)}")
    found: deque[LoggedVerdict] = deque(maxlen=limit)
    counts: Counter[str] = Counter()
    for logged in read_verdicts(
        RunDirectory.open(run_dir),
        group=None if group is None else parse_group(group),
        step=step,
        principle=principle,
        status=status,
    ):
        counts[logged.verdict["status"]] += 1
        found.append(logged)
    if as_json:
        for logged in found:
            fate = dataclasses.asdict(logged.fate)
            typer.echo(json.dumps({**logged.verdict, "reward": logged.reward, "group": fate}))
        return 0
    table = Table("sample", "principle", "verifier", "verdict", "why", "reward", "group")
    for logged in found:
        table.add_row(*_cells(logged))
    Console(markup=False).print(table)
    said = ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "none"
    typer.echo(f"{counts.total()} verdicts ({said}), the newest {len(found)} shown")
    return 0


def replay_command(run_dir: Path, group: str | None, step: int | None, *, as_json: bool) -> int:
    """Print every sample whose reward does not follow from its verdicts, and every group of which
    that cannot be told; with ``as_json`` those that agree too. Raises ``ReplayError`` if any."""
    key = None if group is None else parse_group(group)
    found = replay(RunDirectory.open(run_dir), group=key, step=step)
    if as_json:
        for sample in found.samples:
            verdicts = {name: verdict.as_row() for name, verdict in sample.verdicts.items()}
            shown = {field: getattr(sample, field) for field in sample.__slots__}
            typer.echo(json.dumps({**shown, "verdicts": verdicts, "agrees": sample.agrees}))
        for gap in found.gaps:
            typer.echo(json.dumps({**dataclasses.asdict(gap), "key": str(gap.key)}))
    else:
        for sample in found.disagreements:
            typer.echo(_explained(sample))
        for reason, gaps in by_reason(found.gaps):
            num_samples = sum(len(gap.samples) for gap in gaps)
            keys = ", ".join(str(gap.key) for gap in gaps)
            typer.echo(f"cannot be replayed ({num_samples} samples): {reason}: groups {keys}")
        num_agree = len(found.samples) - len(found.disagreements)
        typer.echo(
            f"{len(found.samples)} samples of {found.groups} groups were replayed: {num_agree} "
            f"agree, {len(found.disagreements)} do not; {len(found.gaps)} groups cannot be replayed"
        )
    if found.disagreements or found.gaps:
        raise ReplayError(
            f"{run_dir}: {len(found.disagreements)} rewards differ from what their verdicts give, "
            f"{len(found.gaps)} groups cannot be replayed"
        )
    return 0


def bars(counts: tuple[int, ...]) -> str:
    """A histogram in one line of text.

    >>> bars((0, 1, 8))
    ' ▁█'
    """
    top = max(counts, default=0) or 1
    return "".join(BARS[-(-count * (len(BARS) - 1) // top)] for count in counts)


def _explained(sample: ReplayedSample) -> str:
    stored = "left out" if sample.stored is None else f"reward {sample.stored!r}"
    given = "left out" if sample.recomputed is None else repr(sample.recomputed)
    said = ", ".join(
        f"{name} {_said(verdict)} x {sample.weights[name]:g}"
        for name, verdict in sample.verdicts.items()
    )
    return f"{sample.sample_id} in step {sample.step}: {stored}, by its verdicts {given}: {said}"


def _said(verdict: Verdict) -> str:
    return (
        repr(verdict.score) if verdict.score is not None else str(verdict.cause or verdict.status)
    )


def _cells(logged: LoggedVerdict) -> list[str]:
    verdict, fate = logged.verdict, logged.fate
    score = "" if verdict["score"] is None else f" {verdict['score']:g}"
    label = verdict["cause"] or verdict["label"]
    outcome = fate.state + (f" in step {fate.step}" if fate.step is not None else "")
    return [
        verdict["sample_id"],
        verdict["principle"],
        f"{verdict['verifier']} {verdict['verifier_version']}",
        f"{verdict['status']}{score}" + (f" ({label})" if label else ""),
        verdict["evidence"] or "",
        "" if logged.reward is None else f"{logged.reward:g}",
        outcome + (f" ({fate.reason})" if fate.reason else ""),
    ]


def _rule(config: Config) -> str:
    """What the printed reward is where it is not that of the run."""
    if config.reward.combine != "decoupled":
        return ""
    return ", as weighted sums: z-scores need siblings, which the rows of a file are not"


def _check_out(out: Path, file: Path) -> None:
    """Refuse a place where no verdicts can be written. Raises ``ConfigError``."""
    try:
        kind, folder = kind_of(out), kind_of(out.parent)
        if kind == "file" and kind_of(file) is not None and out.samefile(file):
            raise ConfigError(f"--out {out}: is the file to score; name another one")
    except (OSError, PathError) as error:
        raise ConfigError(f"--out {out}: cannot be written ({error}); name a file") from None
    if kind is None and folder != "folder":
        why = "there is no such folder"
    elif kind == "folder":
        why = "a folder"
    elif not os.access(out if kind else out.parent, os.W_OK if kind else os.W_OK | os.X_OK):
        why = "permission denied"
    else:
        return
    raise ConfigError(f"--out {out}: cannot be written ({why}); name a file in a folder of yours")


def _write(scored: ScoredFile, out: Path) -> None:
    rows = (verdict_row(v, scored.rewards[v.sample_id]) for v in scored.verdicts)
    try:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Half of a surrogate pair in a verifier's evidence stays what it is in JSON: an escape.
        out.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error


def _require_verdicts(summaries: list[PrincipleSummary]) -> None:
    """Raises ``VerifierUnavailableError`` if a principle has nothing but INVALID verdicts."""
    for line in summaries:
        if sum(line.invalid.values()) == line.rows:
            reasons = "; ".join(reason for _, reason in sorted(line.reasons.items()))
            raise VerifierUnavailableError(
                f"principles.{line.principle}: all {line.rows} verdicts are INVALID "
                f"({', '.join(sorted(line.invalid))}): {reasons}"
            )
