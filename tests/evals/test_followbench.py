"""FollowBench's format: three figures by hand, replies that do not parse, rules of single items."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

import evals.followbench
from evals.followbench import (
    Evolution,
    ItemKey,
    consecutive_levels,
    judge_question,
    level_table,
    read_evolutions,
    read_reply,
    rule_score,
)
from safeladder.errors import DataError

YES, NO = True, False


def rows(
    example: int = 1, source: str = "quora", **fields: Any
) -> list[tuple[str, dict[str, Any]]]:
    return [
        (
            f"style.jsonl:{level + 1}",
            {
                "example_id": example,
                "category": "style",
                "source": source,
                "level": level,
                "instruction": f"Write{' so' * level}.",
                "target": "",
            }
            | fields,
        )
        for level in range(6)
    ]


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(evals.followbench).failed == 0


def test_three_figures_on_a_table_made_by_hand() -> None:
    table = {
        1: [(YES,), (YES, YES), (YES, YES, YES), (YES, NO, YES, YES), (YES,) * 5],
        2: [(YES,), (NO, YES), (YES, YES, YES), (NO,) * 4, (NO,) * 5],
        3: [(NO,), (YES, YES), None, (YES,) * 4, (YES,) * 5],
        4: [(YES,), None, (YES, YES, YES), (YES,) * 4, (YES,) * 5],
    }
    scores = {
        ItemKey("style", example, level): satisfied
        for example, levels in table.items()
        for level, satisfied in enumerate(levels, start=1)
    }
    levels = level_table(scores)
    assert [row["scored"] for row in levels] == [4, 3, 3, 4, 4]
    assert [row["answers"] for row in levels] == [4] * 5
    assert [row["hsr"] for row in levels] == [0.75, 2 / 3, 1.0, 0.5, 0.75]
    assert levels[1]["ssr"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert levels[3]["ssr"] == pytest.approx((0.75 + 0 + 1 + 1) / 4)
    low, high = levels[0]["hsr_ci95"]
    assert low < 0.75 < high
    # 3 levels, 1 level, none; of example 4 it is not known
    assert consecutive_levels(scores) == (pytest.approx(4 / 3), 3, 1)


def test_a_level_without_scores_has_no_figures() -> None:
    levels = level_table({ItemKey("style", 1, 1): None})
    assert levels[0] == {"level": 1, "answers": 1, "scored": 0}
    assert consecutive_levels({ItemKey("style", 1, 1): None}) == (None, 0, 1)


@pytest.mark.parametrize(
    ("reply", "level", "satisfied"),
    [
        ("It fits.\n['YES', 'NO', 'YES']", 3, (YES, NO, YES)),
        ('["NO"]\n\n', 1, (NO,)),
        ("Result: ['YES', 'YES'].", 2, (YES, YES)),
        ("['YES', 'YES']", 3, None),
        ("['YES', 'MAYBE']", 2, None),
        ("['yes']", 1, None),
        ("YES", 1, None),
        ("['YES']\nI hope this helps", 1, None),
        ("", 1, None),
        ("[" * 50_000, 1, None),
        ("[__import__('os').abort() or 'YES']", 1, None),
    ],
)
def test_only_a_list_of_yes_and_no_is_a_reply(reply: str, level: int, satisfied: Any) -> None:
    assert read_reply(reply, level) == satisfied


def test_the_judge_sees_the_whole_path_and_only_up_to_its_level() -> None:
    (evolution,) = read_evolutions("style", rows())
    question = judge_question(evolution, 2, "THE ANSWER")
    assert all(text in question for text in ("Write.", "Write so.", "Write so so.", "THE ANSWER"))
    assert "Write so so so." not in question
    assert "exactly 2 words" in question
    assert "one style constraint" in question


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.pop(3), "style.jsonl:1: example 1 has no level 3"),
        (lambda r: r.append(r[2]), "style.jsonl:3: level 2 of example 1 stands twice"),
        (lambda r: r[4][1].update(level=7), "style.jsonl:5: needs example_id and a level"),
        (lambda r: r[4][1].update(instruction=" "), "style.jsonl:5: column instruction"),
    ],
)
def test_groups_that_are_not_whole_are_named(change: Any, told: str) -> None:
    made = rows()
    change(made)
    with pytest.raises(DataError) as caught:
        read_evolutions("style", made)
    assert str(caught.value).startswith(told)


NEWS = (
    "Potter star is 18 and rich. The actor says he will not be wild. The films have made him known."
)
POINTS = "\n".join(
    f"**{n}. Growth: it helps you learn new things and to move on.**" for n in range(1, 6)
)
LONG = " ".join(["word"] * 21)


@pytest.mark.parametrize(
    ("file", "source", "example", "level", "target", "passes", "fails"),
    [
        ("content", "E2E", 14, 1, "name[X]", "name[X]", "name[X]."),
        ("mixed", "text_editing", 3, 2, "pples", "pples", "apples"),
        ("content", "WIKIEVENTS", 19, 1, "a died\nb died", "b died", "b died\nc died"),
        ("content", "CONLL2003", 21, 4, "['Bonn', 'BRUSSELS']", "Bonn", "bonn"),
        ("situation", "BBH_logical", 1, 3, "(B)", "Not (A). It is (B).", "(B), so not (A)"),
        ("situation", "BBH_time", 6, 1, "12/29/1937", "01/01/2000, so 12/29/1937", "12/29"),
        ("situation", "self_made_space", 7, 1, "14th floor", "On the 14th floor.", "the 14th"),
        ("situation", "gsm_8k", 8, 5, "$37", "$42 less $5 is $37.", "37"),
        ("mixed", "cnn_dailymail", 11, 1, "", "A. B. C.", "A. B."),
        ("mixed", "cnn_dailymail", 11, 5, "", NEWS, NEWS.replace("have made", "made")),
        ("mixed", "cnn_dailymail", 11, 4, "", NEWS, NEWS.replace("wild", "lavish")),
        ("mixed", "cnn_dailymail", 11, 2, "", NEWS, NEWS.replace("wild", "wild " * 15)),
        ("mixed", "cnn_dailymail", 11, 3, "", NEWS, NEWS.replace("actor", "star")),
        ("mixed", "xsum", 12, 5, "", "The operation is growing", "The operation grows"),
        ("mixed", "xsum", 12, 3, "", "It is in town", "It is in Newton Stewart"),
        ("mixed", "samsum", 13, 5, "", "Kim gets stuff done.", "Kim, gets stuff done."),
        ("mixed", "samsum", 13, 4, "", "Kim gets stuff done.", "Kim's stuff: Procrastination"),
        ("mixed", "gigaword", 14, 5, "", "two dead in blast near a small market",
         "two dead in bus blast in small market"),
        ("mixed", "gigaword", 14, 2, "", "A b c d e f g h", "A b c d e f g h."),
        ("mixed", "arxiv", 15, 5, "", "We edit activations", "We edit transformer activations"),
        ("mixed", "arxiv", 15, 3, "", "We edit facts", "They edit facts"),
        ("format", "helpful_base", 22, 1, "", "a\n\nb\n\nc", "a\n\nb"),
        ("format", "helpful_base", 22, 3, "", f"{LONG}.\n\n{LONG}.\n\n{LONG}",
         f"{LONG}.\n\nb.\n\nc"),
        ("format", "koala", 30, 1, "", "**so**", "so"),
        ("format", "koala", 30, 2, "", POINTS, POINTS.replace("**5. Growth", "5. Growth")),
    ],
)  # fmt: skip
def test_rules_of_single_items(
    file: str, source: str, example: int, level: int, target: str, passes: str, fails: str
) -> None:
    evolution = Evolution(
        file=file,
        example_id=example,
        source=source,
        instructions=("Write.",) * 6,
        targets=(target,) * 6,
    )
    assert evolution.has_rule
    assert rule_score(evolution, level, passes) == (True,) * level
    assert rule_score(evolution, level, fails) == (False,) * level
    assert rule_score(evolution, level, " ") == (False,) * level


def test_numbered_paragraphs_of_example_22_cannot_pass_as_published() -> None:
    (evolution,) = read_evolutions("format", rows(example=22, source="helpful_base"))
    numbered = "\n\n".join(f"{n}. {LONG}" for n in (1, 2, 3))
    assert rule_score(evolution, 2, numbered) == (True, True)
    assert rule_score(evolution, 4, numbered) == (False,) * 4


def test_an_instruction_may_begin_with_nothing() -> None:
    made = rows()
    made[0][1]["instruction"] = ""
    (evolution,) = read_evolutions("content", made)
    assert "## First instruction\n(nothing)\n" in judge_question(evolution, 1, "a")


def test_other_items_have_no_rule() -> None:
    (other,) = read_evolutions("format", rows(example=21, source="koala"))
    (same_number,) = read_evolutions("style", rows(example=30, source="koala"))
    assert not other.has_rule
    assert not same_number.has_rule
