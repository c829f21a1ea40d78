"""The example of deliberative search: demonstrations that its own judges accept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.environment_checks import check_environment
from demo.search_data import main
from rewards.search import SearchAccuracy, SearchFormat
from safeladder.config_loading import load_config
from tests.rewards.samples import sample

ROOT = Path(__file__).parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("search")
    main(folder)
    return folder


def test_what_is_demonstrated_earns_the_whole_reward(written: Path) -> None:
    references = {row["prompt"]: row["reference"] for row in rows(written / "train.jsonl")}
    ends = [row for row in rows(written / "sft.jsonl") if "<answer>" in row["response"]]
    assert len(ends) == len(references) == 36
    for row in ends:
        turns = [[m["role"], m["content"]] for m in row["prompt"][1:]]
        turns.append(["assistant", row["response"]])
        request = sample(
            row["response"],
            reference=references[row["prompt"][0]["content"]],
            meta={"conversation": {"turns": turns}},
        )
        for verifier in (SearchFormat(principle="p"), SearchAccuracy(principle="p", match="text")):
            verdict = asyncio.run(verifier.score([request]))[0]
            assert verdict.score == 1.0, (row, verdict)
        assert row["prompt"][2]["content"].startswith("<result>\n[")


def test_no_town_is_asked_about_on_both_sides(written: Path) -> None:
    held_out, trained = (
        {row["prompt"].rstrip("?").split()[-1] for row in rows(written / f"{name}.jsonl")}
        for name in ("heldout", "train")
    )
    assert (len(held_out - {"for"}), len(trained - {"for"})) == (4, 12)
    assert not (held_out - {"for"}) & (trained - {"for"})


def test_the_config_of_the_example_fits_its_data(written: Path, tmp_path: Path) -> None:
    overrides = [
        f"data.train=[{written / 'train.jsonl'}]",
        f"data.held_out=[{written / 'heldout.jsonl'}]",
        f"rollout.environment.options.corpus={ROOT / 'demo' / 'library'}",
    ]
    config = load_config([ROOT / "configs" / "search.yaml"], overrides)
    check_environment(config)
    assert config.constraints["false_certain"].weighs == "reliability"
