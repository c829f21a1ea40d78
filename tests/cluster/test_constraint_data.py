"""Checks of released files, on files of ours in the same formats."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.constraint_data import main
from curricula.composition import Composition
from curricula.constraint_sets import draw_constraints
from curricula.orders import draw_order, inverse, inversions_for

SIZE = 7


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_files(folder: Path) -> None:
    """Twelve rows a file, the same seeds and constraints in each."""
    rng = Random(4)
    made = [(f"Tell me of {n}.", draw_constraints("Go.", SIZE, rng)) for n in range(12)]

    def row(prompt: str, constraints: Any, ranking: Any) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "instruction_id_list": [one.id for one in constraints],
            "kwargs": [dict(one.kwargs) for one in constraints],
            "constraints": [one.text for one in constraints],
            "ranking": list(ranking),
        }

    identity = tuple(range(SIZE))
    for label in ("1.0", "0.2", "-1.0"):
        rows = []
        for seed, constraints in made:
            ranks = draw_order(SIZE, inversions_for(float(label), SIZE), rng)
            composed = Composition.in_order(seed, constraints, ranks, identity)
            rows.append(row(composed.single_round(), constraints, inverse(ranks)))
        write(folder / "pbif" / "single_round" / f"m_tau{label}.jsonl", rows)
    multi = [row(seed, constraints, identity) for seed, constraints in made]
    write(folder / "pbif" / "multi_round" / "m_tau1.0.jsonl", multi)
    levels = [
        {
            "example_id": 1,
            "category": "situation",
            "source": "BBH_logical",
            "level": level,
            "instruction": f"Level {level}",
            "target": "(B)",
        }
        for level in range(6)
    ]
    write(folder / "followbench" / "situation_constraints.jsonl", levels)


def change(path: Path, line: int, **fields: Any) -> None:
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line] |= fields
    write(path, rows)


def test_whole_files_pass_and_only_one_level_tells_the_readings_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "BAD" not in said
    assert "m_tau0.2.jsonl: prompts made again from seed, constraints and order: 12 of 12" in said
    assert "m_tau1.0.jsonl: prompts under the inverse reading: 12 of 12" in said
    assert "m_tau0.2.jsonl: prompts under the inverse reading: 12 of 12" not in said
    assert "situation_constraints.jsonl: targets that their own rule accepts: 5 of 5" in said


def test_what_differs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_files(tmp_path)
    change(tmp_path / "pbif" / "multi_round" / "m_tau1.0.jsonl", 3, prompt="Tell me of nothing.")
    change(tmp_path / "followbench" / "situation_constraints.jsonl", 2, target="B")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "BAD  m_tau0.2.jsonl: prompts made again from seed, constraints and order: 11 of" in said
    assert "m_tau0.2.jsonl:4\n" in said
    assert "targets that their own rule accepts: 4 of 5" in said


def test_another_cddi_than_the_files_name_says_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_files(tmp_path)
    single = tmp_path / "pbif" / "single_round"
    (single / "m_tau1.0.jsonl").rename(single / "m_tau0.8.jsonl")
    assert main([str(tmp_path)]) == 1
    assert "BAD  single_round/m_tau0.8.jsonl: rows with the file's CDDI: 0 of 12" in (
        capsys.readouterr().out
    )


def test_rows_and_folders_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no pbif/single_round" in capsys.readouterr().err
    make_files(tmp_path)
    change(tmp_path / "pbif" / "single_round" / "m_tau0.2.jsonl", 5, ranking=[0, 0, 1, 2, 3, 4, 5])
    assert main([str(tmp_path)]) == 2
    assert "m_tau0.2.jsonl:6: column ranking: [0, 0, 1" in capsys.readouterr().err
    assert main([]) == 2
