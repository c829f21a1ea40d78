"""The demo's prompts are what their README says, and nothing held out leaks into training."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[2] / "demo" / "data"
ROUTES = {
    "harmful": "safety",
    "lookalike": "normal",
    "helpful": "normal",
    "task": "knowledge_rule",
}
NEAR_DUPLICATE = 0.6
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the i me my we our you your it its he she his her they them their is are was were be "
        "do does did can could should would might will how what which who where when why to of in "
        "on at for from with by into out up off and or so if that this these those there some any "
        "without as than then not no have has had am tell much after before",
    )
)


def rows(split: str) -> list[dict[str, Any]]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def content_words(text: str) -> frozenset[str]:
    """Lower-cased words, numbers and arithmetic signs, without the stop words."""
    words = re.findall(r"[a-z0-9]+|[-+](?= )", text.lower().replace("'", ""))
    return frozenset(words) - STOP_WORDS


def similarity(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / max(1, len(left | right))


@pytest.mark.parametrize(
    ("split", "least"),
    [
        ("train", {"harmful": 220, "lookalike": 140, "helpful": 100, "task": 120}),
        ("heldout", {"harmful": 120, "lookalike": 80, "helpful": 60, "task": 50}),
    ],
)
def test_every_kind_has_its_number_of_rows(split: str, least: dict[str, int]) -> None:
    counts = Counter(row["meta"]["kind"] for row in rows(split))
    assert counts.keys() == least.keys()
    assert all(counts[kind] >= least[kind] for kind in least)
    if split == "heldout":
        assert dict(counts) == least


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_prompt_rows_follow_the_schema(split: str) -> None:
    for row in rows(split):
        assert list(row) == ["id", "prompt", "reference", "route", "lang", "meta"]
        assert list(row["meta"]) == ["kind", "category"]
        kind = row["meta"]["kind"]
        assert row["id"].startswith(f"{split}-{kind}-")
        assert row["route"] == ROUTES[kind]
        assert row["lang"] == "en"
        assert row["meta"]["category"]
        assert 3 <= len(row["prompt"].split()) <= 16
        assert row["prompt"] == row["prompt"].strip()
        if kind == "task":
            assert row["reference"]
        else:
            assert row["reference"] is None


def test_cold_start_rows_follow_the_schema_and_are_few() -> None:
    found = rows("sft")
    assert len(found) <= 200
    for row in found:
        assert list(row) == ["id", "prompt", "response", "meta"]
        assert row["meta"]["kind"] in ROUTES
        assert 1 <= len(row["response"].split()) <= 30
    assert {row["meta"]["kind"] for row in found} == ROUTES.keys()


def test_ids_and_prompts_are_unique_over_all_files() -> None:
    everything = [row for split in ("train", "heldout", "sft") for row in rows(split)]
    ids = Counter(row["id"] for row in everything)
    prompts = Counter(row["prompt"].lower() for row in everything)
    assert ids.most_common(1)[0][1] == 1
    assert prompts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("split", ["train", "sft"])
def test_no_training_prompt_is_a_near_duplicate_of_a_heldout_one(split: str) -> None:
    heldout = [(row["prompt"], content_words(row["prompt"])) for row in rows("heldout")]
    for row in rows(split):
        words = content_words(row["prompt"])
        close = [prompt for prompt, other in heldout if similarity(words, other) >= NEAR_DUPLICATE]
        assert not close, f"{row['prompt']!r} is close to {close}"


def test_harmful_and_look_alike_prompts_cover_the_same_categories() -> None:
    for split in ("train", "heldout"):
        categories: dict[str, set[str]] = {"harmful": set(), "lookalike": set()}
        for row in rows(split):
            if row["meta"]["kind"] in categories:
                categories[row["meta"]["kind"]].add(row["meta"]["category"])
        assert categories["harmful"] == categories["lookalike"]
        assert len(categories["harmful"]) >= 10
