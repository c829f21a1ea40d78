"""The trap of ``ranking``: rendered text tells the two meanings apart, CDDI does not.

Rows are ours, in the format of the released files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curricula.composition import Composition
from curricula.orders import inverse
from curricula.pbif import Round, read_pbif
from safeladder.errors import DataError

TEXTS = ["Use no commas", "Say tea", "Put it in quotes. All of it."]
IDS = ["punctuation:no_comma", "keywords:existence", "startend:quotation"]
KWARGS: list[dict[str, Any]] = [{}, {"keywords": ["tea"], "num_words": None}, {}]


def row(**fields: Any) -> dict[str, Any]:
    """Slot 0 has constraint 1, slot 1 has constraint 2, slot 2 has constraint 0."""
    given = {
        "prompt": "Write. Say tea. Put it in quotes. All of it.. Use no commas.",
        "instruction_id_list": IDS,
        "kwargs": KWARGS,
        "constraints": TEXTS,
        "ranking": [2, 0, 1],
    }
    return given | fields


def read(tmp_path: Path, shape: Round, *rows: dict[str, Any]) -> list[Composition]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return [composed for _, composed in read_pbif(path, shape)]


def test_in_single_round_ranking_says_the_slot_of_each_constraint(tmp_path: Path) -> None:
    (made,) = read(tmp_path, "single", row())
    assert made.seed == "Write."
    assert made.presented_order == (1, 2, 0)
    assert made.ranks == (1, 2, 0)
    assert made.single_round() == row()["prompt"]


def test_in_multi_round_ranking_says_the_rank_at_each_slot(tmp_path: Path) -> None:
    (made,) = read(tmp_path, "multi", row(prompt="Write."))
    assert made.multi_round() == ("Write.", *(f"{text}." for text in TEXTS))
    assert made.ranks == (2, 0, 1)


def test_the_inverse_reading_has_the_same_cddi_and_another_text(tmp_path: Path) -> None:
    (right,) = read(tmp_path, "single", row())
    wrong = Composition(
        seed=right.seed,
        constraints=right.constraints,
        presented_order=inverse(right.presented_order),
        difficulty_rank=right.difficulty_rank,
    )
    assert wrong.cddi == right.cddi
    assert wrong.single_round() != row()["prompt"]
    with pytest.raises(DataError, match=r"rows.jsonl:1: column prompt does not end with"):
        read(tmp_path, "single", row(ranking=[1, 2, 0]))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ranking": [0, 0, 1]}, "column ranking: [0, 0, 1] is no permutation"),
        ({"ranking": [0, 1]}, "column ranking: 2 entries, but instruction_id_list has 3"),
        ({"ranking": None}, "column ranking: must be a list"),
        ({"kwargs": [{}, {}, {}]}, "keywords:existence: keywords: Field required"),
        ({"kwargs": [{}, [], {}]}, "column kwargs: must hold objects, not []"),
        ({"constraints": ["a", "b", " "]}, "startend:quotation: the constraint has no text"),
        ({"prompt": ""}, "column prompt: must be text"),
        (
            {"instruction_id_list": [IDS[0], IDS[0], IDS[2]], "kwargs": [{}, {}, {}]},
            "punctuation:no_comma stands twice",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: ") as caught:
        read(tmp_path, "single", row(), row(**fields))
    assert told in str(caught.value)


def test_a_cut_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n" + json.dumps(row())[:40])
    with pytest.raises(DataError, match=r"rows.jsonl:2: the last line is cut off"):
        list(read_pbif(path, "single"))
