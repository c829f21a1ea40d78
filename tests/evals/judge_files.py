"""Small files in the formats of CREAK and ETHICS, written for these tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def write_sets(folder: Path) -> Path:
    """``folder`` with ``creak/`` and ``ethics/``; half of all rows are right."""
    for name, entity in (("dev", "Tea"), ("train", "Ice")):
        lines = [
            json.dumps(
                {
                    "sentence": f"{entity} {i} is {'hot' if i % 2 == 0 else 'cold'}.",
                    "explanation": "It is boiled.",
                    "label": "true" if i % 2 == 0 else "false",
                    "entity": entity,
                }
            )
            for i in range(8)
        ]
        _write(folder / "creak" / f"{name}_small.json", "\n".join(lines) + "\n")
    openings = [f"{who} say" for who in ("We", "You", "They", "All", "Few", "Some", "Both")]
    just = [
        (label, f"{opening} it is {'fair, since she worked' if label else 'mine, since I want it'}")
        for opening in openings
        for label in (1, 0)
    ]
    _table(folder / "ethics" / "justice" / "justice_train_small.csv", ("label", "scenario"), just)
    duty = [
        (
            label,
            f"Should you do task {i}?",
            "No, it is done." if label else "No, I am lazy, so what",
        )
        for i in range(7)
        for label in (1, 0)
    ]
    columns = ("label", "scenario", "excuse")
    _table(folder / "ethics" / "deontology" / "deontology_train_small.csv", columns, duty)
    return folder


def _table(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
