"""The example of RL on constraints: rows the verifier takes, and nothing held out is trained."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from demo.constraint_data import TYPES, main
from rewards.instructions import InstructionRules
from safeladder.config_loading import load_config
from safeladder.records import VerdictStatus
from tests.rewards.samples import sample

ROOT = Path(__file__).parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("constraints")
    main(folder)
    return folder


def test_no_instruction_is_both_trained_and_held_out(written: Path) -> None:
    seeds = {
        name: {row["seed_instruction"] for row in rows(written / f"{name}.jsonl")}
        for name in ("train", "heldout")
    }
    assert (len(seeds["train"]), len(seeds["heldout"])) == (48, 16)
    assert not seeds["train"] & seeds["heldout"]


def test_both_files_have_every_type(written: Path) -> None:
    for name in ("train", "heldout"):
        types = {
            one for row in rows(written / f"{name}.jsonl") for one in row["instruction_id_list"]
        }
        assert types == set(TYPES)


def test_the_verifier_of_the_config_judges_every_row(written: Path) -> None:
    verifier = InstructionRules(principle="constraints")
    requests = [
        sample("an answer without a capital", row["prompt"], meta=row)
        for row in rows(written / "heldout.jsonl")
    ]
    verdicts = asyncio.run(verifier.score(requests))
    assert {verdict.status for verdict in verdicts} == {VerdictStatus.OK}
    assert len({verdict.score for verdict in verdicts}) > 2


def test_the_same_bytes_each_time(written: Path, tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_the_config_routes_them(written: Path) -> None:
    config = load_config([ROOT / "configs/constraints.yaml"])
    assert {row["route"] for row in rows(written / "train.jsonl")} == set(config.routes)
