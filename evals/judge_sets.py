"""Labelled sets that a judge is measured on, read from their own file formats.

Owns how a row of each set becomes a question, a response and the label that is right. The rows of
CREAK and ETHICS stay where they are: a folder is given, nothing of it is kept here.

CREAK (Onoe et al. 2021) holds claims; the response is the claim, and the reference is the
explanation that the set gives with it. ETHICS (Hendrycks et al. 2021): in *justice* the response is
the scenario, in *deontology* the scenario is the question and the excuse the response.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.detector import LABELLED_RESPONSES

CLAIM = "What is true of {entity}?"
REASON = "Tell me something that is reasonable, and why."
OPENING_WORDS = 2
"""Neighbours in *justice* that begin with the same words count as one group: its groups differ in
the last clause, and the file does not number them."""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One response and its right label."""

    question: str
    response: str
    label: str
    """A label of the set's judge template."""
    group: str
    """Rows of one group are never on both sides of a fit."""
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeSet:
    """Rows for one judge template."""

    name: str
    template: str
    rows: Sequence[LabelledRow]
    training: Sequence[LabelledRow] = ()
    """Rows apart to fit a classifier on; if there are none it is cross-validated."""


def read_sets(folder: Path) -> list[JudgeSet]:
    """All sets; those from outside lie in ``folder`` as ``creak/`` and ``ethics/``.

    Raises ``ValueError`` naming what is missing or cannot be read.
    """
    ethics = folder / "ethics"
    return [
        JudgeSet(
            "CREAK",
            "knowledge",
            creak(_file(folder / "creak", "dev*.json")),
            creak(_file(folder / "creak", "train*.json")),
        ),
        JudgeSet("ETHICS justice", "value", justice(_file(ethics / "justice", "*.csv"))),
        JudgeSet("ETHICS deontology", "value", deontology(_file(ethics / "deontology", "*.csv"))),
        JudgeSet("our responses", "safety", responses("safety")),
        JudgeSet("our responses", "normal", responses("normal")),
    ]  # fmt: skip


def creak(path: Path) -> list[LabelledRow]:
    """JSON lines with ``sentence``, ``explanation``, ``entity``, ``label``."""
    labels = {"true": "TRUE", "false": "FALSE"}
    return [
        LabelledRow(
            question=CLAIM.format(entity=row["entity"]),
            response=row["sentence"],
            label=labels[row["label"]],
            group=row["entity"],
            reference=row["explanation"],
        )
        for row in _json_lines(path, ("sentence", "explanation", "entity", "label"))
    ]


def justice(path: Path) -> list[LabelledRow]:
    """CSV with ``label`` and ``scenario``."""
    found: list[LabelledRow] = []
    group, opening = 0, ""
    for row in _csv_rows(path, ("label", "scenario")):
        words = " ".join(row["scenario"].lower().split()[:OPENING_WORDS])
        group += words != opening
        opening = words
        found.append(LabelledRow(REASON, row["scenario"].strip(), _value(row), str(group)))
    return found


def deontology(path: Path) -> list[LabelledRow]:
    """CSV with ``label``, ``scenario`` and ``excuse``."""
    return [
        LabelledRow(
            row["scenario"].strip(), row["excuse"].strip(), _value(row), row["scenario"].strip()
        )
        for row in _csv_rows(path, ("label", "scenario", "excuse"))
    ]


def responses(column: str, path: Path = LABELLED_RESPONSES) -> list[LabelledRow]:
    """Our labelled responses that have a label in ``column``."""
    return [
        LabelledRow(row["prompt"], row["response"], row[column], row["prompt"])
        for row in _json_lines(path, ("prompt", "response"))
        if column in row
    ]


def _value(row: dict[str, str]) -> str:
    return {"1": "good", "0": "bad"}[row["label"]]


def _file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} files {pattern}, expected one")
    return found[0]


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        _require(row, columns, f"{path}:{number}")
        yield row


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            _require(row, columns, f"{path}: row {number}")
            yield row


def _require(row: dict[str, Any], columns: Sequence[str], where: str) -> None:
    missing = [column for column in columns if row.get(column) is None]
    if missing:
        raise ValueError(f"{where} lacks {missing}")
