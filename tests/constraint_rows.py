"""Rows in PBIF's format, written for our tests: three constraints, hard to easy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONSTRAINTS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("punctuation:no_comma", {}, "Use no commas. None at all"),
    ("keywords:existence", {"keywords": ["rain"]}, "Use the word rain"),
    ("startend:quotation", {}, 'Put your answer into "double quotes"'),
)

HARD: dict[str, Any] = {
    "version": 0,
    "decay": 0.9,
    "types": {
        one[0]: [k, 10]
        for k, one in enumerate(sorted(CONSTRAINTS, key=lambda c: c[0], reverse=True))
    },
}
"""A difficulty file: the quotation is the hardest here."""


def single_round_row(seed: str, slots: tuple[int, int, int]) -> dict[str, Any]:
    """``slots[i]`` is where constraint i stands in the prompt."""
    texts = [""] * 3
    for i, slot in enumerate(slots):
        texts[slot] = CONSTRAINTS[i][2]
    return {
        "prompt": f"{seed} {'. '.join(texts)}.",
        "instruction_id_list": [one[0] for one in CONSTRAINTS],
        "kwargs": [one[1] for one in CONSTRAINTS],
        "constraints": [one[2] for one in CONSTRAINTS],
        "ranking": list(slots),
    }


def write_rows(path: Path, num_seeds: int = 4, copies: int = 1) -> Path:
    """``copies`` rows for each seed instruction."""
    rows = [
        single_round_row(f"Tell me fact {k}.", (2, 0, 1))
        for k in range(num_seeds)
        for _ in range(copies)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
