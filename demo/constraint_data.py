"""Instructions with one to three constraints, for reinforcement learning on constraints.

``python -m demo.constraint_data build/constraints`` writes ``train.jsonl`` and ``heldout.jsonl``
there: the instructions of ``demo/data/seeds.jsonl`` with types that 64 tokens suffice for.
No instruction is in both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from curricula.composer import ComposeOptions, compose_rows
from curricula.rows import read_rows

SEEDS = Path(__file__).parent / "data" / "seeds.jsonl"
TYPES = (
    "change_case:english_lowercase",
    "change_case:english_capital",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:title",
    "keywords:existence",
    "keywords:forbidden_words",
    "length_constraints:number_sentences",
    "length_constraints:number_words",
    "punctuation:no_comma",
    "startend:end_checker",
    "startend:quotation",
)
EVERY = 4
"""Each fourth instruction is held out."""
COPIES = {"train": 8, "heldout": 10}


def main(folder: Path) -> None:
    """Write the two files; the same bytes each time."""
    seeds: dict[str, list[tuple[str, dict[str, str]]]] = {"train": [], "heldout": []}
    for number, (place, seed) in enumerate(read_rows(SEEDS), 1):
        row = {"id": seed["id"], "prompt": seed["instruction"], "route": "constraints"}
        part = "heldout" if number % EVERY == 0 else "train"
        seeds[part].append((place, row))
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in seeds.items():
        options = ComposeOptions(counts=(1, 2, 3), types=TYPES, per_seed=COPIES[part], seed=7)
        text = "".join(json.dumps(row) + "\n" for row in compose_rows(rows, options))
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
