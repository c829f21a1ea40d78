"""Our ``reference`` reading against independent checkers, type by type: ``python -m
evals.constraint_agreement --responses FILE [--peer NAME=PYTHON]... [--out FILE]``.

``FILE`` has rows ``{prompt, instruction_id_list, kwargs, response}``, as ``responses.jsonl`` of
``safeladder evaluate-constraints``. A peer is ``if-verifiable`` or ``lm-eval`` with the interpreter
of an environment that has it (``make constraint-peers``). Both descend from the code that ours were
written after, so agreement shows that a rule was read right, not that it is right; types with few
positives show little even of that, which is why positives stand in the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evals.ifeval import constraints_of, visible
from rewards.constraints.port import HardConstraint
from rewards.constraints.reward import check
from safeladder.errors import ConfigError, DataError, SafeladderError
from safeladder.paths import PathError, read_bytes

PEERS = ("if-verifiable", "lm-eval")
PYTHON = "build/peers/constraints/bin/python"
DEADLINE_S = 1800.0
MAX_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One constraint on one answer."""

    place: str
    id: str
    kwargs: Mapping[str, Any]
    text: str
    ours: bool | None


@dataclass(slots=True)
class TypeAgreement:
    """Counts of one type."""

    checks: int = 0
    met: int = 0
    """By ours."""
    agree: Counter[str] = field(default_factory=Counter)
    """Peer → checks with the same verdict."""
    failed: Counter[str] = field(default_factory=Counter)
    """Peer → checks on which it, or ours, failed."""


def read_checked(path: Path) -> list[Checked]:
    """Our verdicts on all rows. Raises ``DataError`` naming file and line."""
    try:
        lines = read_bytes(path).decode("utf-8").splitlines()
    except (FileNotFoundError, PathError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    checked = []
    for number, line in enumerate(lines, start=1):
        place = f"{path.name}:{number}"
        try:
            row = json.loads(line)
            text = visible(row["response"])
            constraints = constraints_of(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{place}: {type(error).__name__}: {error}") from None
        for one, ours in zip(constraints, check(constraints, text, "reference"), strict=True):
            assert isinstance(one.constraint, HardConstraint), "the vocabulary holds nothing else"
            kwargs = one.constraint.model_dump(mode="json")
            checked.append(Checked(place=place, id=one.id, kwargs=kwargs, text=text, ours=ours))
    return checked


def ask_peer(name: str, python: str, checked: Sequence[Checked]) -> list[bool | str]:
    """A peer's verdicts, in order; text where it failed. Raises ``ConfigError`` if it does not
    run."""
    script = Path(__file__).with_name("constraint_peer.py")
    lines = "".join(json.dumps([one.id, one.kwargs, one.text]) + "\n" for one in checked)
    try:
        done = subprocess.run(
            [python, str(script), name],
            input=lines,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
        said: list[bool | str] = [json.loads(line) for line in done.stdout.splitlines()]
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"--peer {name}={python}: failed: {last}") from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise ConfigError(f"--peer {name}={python}: failed: {error}") from None
    if len(said) != len(checked):
        raise ConfigError(f"--peer {name}: {len(said)} verdicts for {len(checked)} checks")
    return said


def compare_verdicts(
    checked: Sequence[Checked], peers: Mapping[str, Sequence[bool | str]]
) -> tuple[dict[str, TypeAgreement], list[dict[str, Any]]]:
    """(type → counts, every check on which a peer says otherwise)."""
    table: dict[str, TypeAgreement] = {}
    differing: list[dict[str, Any]] = []
    for index, one in enumerate(checked):
        counts = table.setdefault(one.id, TypeAgreement())
        counts.checks += 1
        counts.met += one.ours is True
        for name, verdicts in peers.items():
            theirs = verdicts[index]
            if isinstance(theirs, str) or one.ours is None:
                counts.failed[name] += 1
            if theirs == one.ours:
                counts.agree[name] += 1
            else:
                why = explain(one, theirs)
                differing.append({"peer": name, "theirs": theirs, "why": why, **asdict(one)})
    return dict(sorted(table.items())), differing


def explain(one: Checked, theirs: bool | str) -> str:
    """What is known of a disagreement; empty if nothing is."""
    if one.ours is None and isinstance(theirs, str):
        return "both rules fail on it"
    if isinstance(theirs, str):
        return "the peer's rule fails"
    letter = one.kwargs.get("letter")
    if isinstance(letter, str) and not ("a" <= letter.lower() <= "z"):
        return "the peer draws a letter at random for one that is not a to z"
    return ""


def table_text(table: Mapping[str, TypeAgreement], peers: Sequence[str]) -> str:
    """As Markdown: for each peer the checks that agree."""
    rows = [["type", "checks", "met", *peers], ["---"] * (3 + len(peers))]
    for name, counts in table.items():
        rows.append([name, str(counts.checks), str(counts.met), *(_cell(counts, p) for p in peers)])
    total = sum(counts.checks for counts in table.values())
    met = sum(counts.met for counts in table.values())
    agreed = [str(sum(counts.agree[peer] for counts in table.values())) for peer in peers]
    rows.append(["all", str(total), str(met), *agreed])
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cell(counts: TypeAgreement, peer: str) -> str:
    failed = counts.failed[peer]
    return f"{counts.agree[peer]}" + (f" ({failed} failed)" if failed else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="evals.constraint_agreement", description=__doc__)
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--peer", action="append", help=f"NAME=PYTHON; default: both, {PYTHON}")
    parser.add_argument("--out", type=Path, help="JSON file of counts and disagreements")
    given = parser.parse_args(arguments)
    try:
        peers = _peers(given.peer or [f"{name}={PYTHON}" for name in PEERS])
        checked = read_checked(given.responses)
        verdicts = {name: ask_peer(name, python, checked) for name, python in peers.items()}
    except SafeladderError as error:
        sys.stderr.write(f"safeladder: {error}\n")
        return error.exit_code
    table, differing = compare_verdicts(checked, verdicts)
    sys.stdout.write(table_text(table, list(peers)))
    for one in differing[:MAX_SHOWN]:
        said = f"{one['place']} {one['id']} {json.dumps(one['kwargs'])}: ours {one['ours']}, "
        sys.stdout.write(f"{said}{one['peer']} {one['theirs']}; {one['why'] or 'unexplained'}\n")
    unexplained = sum(not one["why"] for one in differing)
    sys.stdout.write(f"{len(differing)} disagreements, {unexplained} of them unexplained\n")
    if given.out is not None:
        counts = {
            name: {
                "checks": one.checks,
                "met": one.met,
                "agree": dict(one.agree),
                "failed": dict(one.failed),
            }
            for name, one in table.items()
        }
        result = {"types": counts, "disagreements": differing}
        given.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return int(unexplained > 0)


def _peers(given: Sequence[str]) -> dict[str, str]:
    peers = dict(one.partition("=")[::2] for one in given)
    unknown = sorted(set(peers) - set(PEERS))
    if unknown or not all(peers.values()):
        raise ConfigError(f"--peer: write NAME=PYTHON, NAME being one of {', '.join(PEERS)}")
    return peers


if __name__ == "__main__":
    sys.exit(main())
