"""What the released files of PBIF and FollowBench have to show: ``python -m cluster.constraint_data
DIR``, or ``make data-checks DATA=DIR``.

``DIR`` has ``pbif/`` and ``followbench/`` with the files under their released names. Of every row
of PBIF: its CDDI is the file's, and seed (taken from the multi-round file, which holds it bare),
constraints and order give the released single-round prompt byte for byte. Of FollowBench: whole
groups, and each rule accepts its own target. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import typer

from curricula.composition import Composition
from curricula.orders import inverse, inversions_for, num_pairs
from curricula.pbif import read_pbif
from curricula.rows import read_rows
from evals.followbench import LEVELS, read_evolutions, rule_score
from rewards.constraints.reward import STUBS, check
from rewards.constraints.rows import stated
from safeladder.errors import DataError, SafeladderError

MAX_SHOWN = 5


class Finding(NamedTuple):
    """One line of the result."""

    name: str
    good: int
    of: int
    differing: tuple[str, ...] = ()
    """Places of rows that differ."""
    is_required: bool = True
    """False for what is only told."""


def check_pbif(folder: Path) -> Iterator[Finding]:
    """Findings about all files. Raises ``DataError``."""
    multi = sorted(folder.glob("multi_round/*.jsonl"))
    seeds: list[str] = []
    for path in multi:
        rows = list(read_pbif(path, "multi"))
        yield _cddi(path, rows)
        seeds = seeds or [one.seed for _, one in rows]
    for path in sorted(folder.glob("single_round/*.jsonl")):
        rows = list(read_pbif(path, "single"))
        yield _cddi(path, rows)
        texts = [str(row["prompt"]) for _, row in read_rows(path)]
        yield _rendered(path, rows, texts, seeds)
        wrong = [_inverted(one).single_round() for _, one in rows]
        same = sum(a == b for a, b in zip(wrong, texts, strict=True))
        yield Finding(f"{path.name}: prompts under the inverse reading", same, len(rows),
                      is_required=False)  # fmt: skip
        yield from _stubs(path, rows)


def _cddi(path: Path, rows: Sequence[tuple[str, Composition]]) -> Finding:
    """The file's name ends with its label, such as ``tau0.2``."""
    label = float(path.stem.rpartition("tau")[2])
    differing = []
    for place, one in rows:
        pairs = num_pairs(len(one.constraints))
        if one.cddi != (pairs - 2 * inversions_for(label, len(one.constraints))) / pairs:
            differing.append(f"{place}: {one.cddi}")
    name = f"{path.parent.name}/{path.name}: rows with the file's CDDI"
    return Finding(name, len(rows) - len(differing), len(rows), tuple(differing))


def _rendered(
    path: Path, rows: Sequence[tuple[str, Composition]], texts: Sequence[str], seeds: Sequence[str]
) -> Finding:
    differing = [
        place
        for (place, one), text, seed in zip_longest(rows, texts, seeds[: len(rows)])
        if replace(one, seed=seed or "").single_round() != text
    ]
    name = f"{path.name}: prompts made again from seed, constraints and order"
    return Finding(name, len(rows) - len(differing), len(rows), tuple(differing))


def _inverted(one: Composition) -> Composition:
    return replace(one, presented_order=inverse(one.presented_order))


def _stubs(path: Path, rows: Sequence[tuple[str, Composition]]) -> Iterator[Finding]:
    entries = [
        stated([{"id": c.id, "kwargs": c.kwargs} for c in one.constraints]) for _, one in rows
    ]
    for stub in STUBS:
        met = [outcome for row in entries for outcome in check(row, stub, "reference")]
        name = f"{path.name}: constraints met by the text {stub}"
        yield Finding(name, sum(outcome is True for outcome in met), len(met), is_required=False)


def check_followbench(folder: Path) -> Iterator[Finding]:
    """Findings about all files. Raises ``DataError``."""
    for path in sorted(folder.glob("*_constraints.jsonl")):
        kind = path.stem.removesuffix("_constraints")
        groups = read_evolutions(kind, read_rows(path))
        yield Finding(f"{path.name}: whole groups", len(groups), len(groups))
        ruled = [one for one in groups if one.has_rule]
        yield Finding(f"{path.name}: of them scored by rule", len(ruled), len(groups),
                      is_required=False)  # fmt: skip
        # CONLL2003's target is a list of answers; the others are answers themselves.
        targets = [(one, level) for one in ruled for level in LEVELS
                   if one.targets[level] and one.source != "CONLL2003"]  # fmt: skip
        refused = [
            str(one.key(level))
            for one, level in targets
            if not all(rule_score(one, level, one.targets[level]))
        ]
        yield Finding(f"{path.name}: targets that their own rule accepts",
                      len(targets) - len(refused), len(targets), tuple(refused))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        typer.echo("usage: python -m cluster.constraint_data DIR", err=True)
        return 2
    folder = Path(given[0])
    try:
        findings = [*check_pbif(folder / "pbif"), *check_followbench(folder / "followbench")]
        if not findings:
            raise DataError(
                f"{folder}: has no pbif/single_round/*.jsonl and no followbench/*.jsonl"
            )
    except SafeladderError as error:
        typer.echo(f"safeladder: {error}", err=True)
        return error.exit_code
    for one in findings:
        typer.echo(f"{_mark(one)} {one.name}: {one.good} of {one.of}{_percent(one)}")
        for place in one.differing[:MAX_SHOWN]:
            typer.echo(f"    {place}")
    return int(any(one.is_required and one.good != one.of for one in findings))


def _mark(one: Finding) -> str:
    if not one.is_required:
        return "    "
    return "ok  " if one.good == one.of else "BAD "


def _percent(one: Finding) -> str:
    return f" ({100 * one.good / one.of:.1f} %)" if one.of else ""


if __name__ == "__main__":
    sys.exit(main())
