"""Constraints that a program can check, and rows that it cannot read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.instructions import CONSTRAINTS, MAX_CONSTRAINTS, InstructionRules
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, Verdict
from tests.rewards.samples import sample

WORDS = "length_constraints:number_words"
PRESENT = "keywords:existence"
ABSENT = "keywords:forbidden_words"
BULLETS = "detectable_format:number_bullet_lists"
JSON = "detectable_format:json_format"


class NoComma:
    """A constraint from outside."""

    def is_met(self, answer: str) -> bool:
        return "," not in answer


def row(*constraints: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"id": name, "kwargs": kwargs} for name, kwargs in constraints])


def check(answer: str, reference: object, **options: Any) -> Verdict:
    verifier = InstructionRules(principle="instruction", **options)
    fields: dict[str, Any] = {"reference": reference}
    if options.get("source") == "meta":
        fields = {"meta": {"constraints": reference}}
    (verdict,) = asyncio.run(verifier.score([sample(f"<think>x</think>{answer}", **fields)]))
    return verdict


@pytest.mark.parametrize(
    ("name", "kwargs", "met", "missed"),
    [
        (WORDS, {"relation": "less than", "num_words": 3}, "one two", "one two three"),
        (WORDS, {"relation": "at least", "num_words": 3}, "one two three", "one two"),
        (PRESENT, {"keywords": ["Tea", "milk"]}, "teapots and MILK", "tea alone"),
        (PRESENT, {"keywords": ["a.c"]}, "a.c", "abc"),
        (ABSENT, {"forbidden_words": ["cat"]}, "a concatenation", "a Cat!"),
        (ABSENT, {"forbidden_words": [".*"]}, "anything", "a .* b"),
        (BULLETS, {"num_bullets": 2}, "list:\n* a\n - b", "* a\n* b\n- c"),
        (BULLETS, {"num_bullets": 1}, "**bold**\n- a", "**bold**"),
        (BULLETS, {"num_bullets": 0}, "*\n", "- a"),
        (JSON, {}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
        (JSON, {}, "[1, 2]", "[" * 100_000),
    ],
)
def test_a_constraint_is_met_or_missed(
    name: str, kwargs: dict[str, Any], met: str, missed: str
) -> None:
    assert check(met, row((name, kwargs))).score == 1.0
    verdict = check(missed, row((name, kwargs)))
    assert (verdict.score, verdict.evidence) == (0.0, name)


def test_the_score_is_the_share_that_is_met() -> None:
    three = row((PRESENT, {"keywords": ["tea"]}), (BULLETS, {"num_bullets": 1}), (JSON, {}))
    verdict = check("- tea", three)
    assert (verdict.score, verdict.label) == (pytest.approx(2 / 3), "2 of 3")
    assert check("- tea", three, all_or_nothing=True).score == 0.0
    assert check("- tea", row((BULLETS, {"num_bullets": 1})), all_or_nothing=True).score == 1.0


def test_only_the_visible_answer_counts_and_a_blank_one_meets_nothing() -> None:
    assert check("tea", row((ABSENT, {"forbidden_words": ["x"]}))).score == 1.0
    assert check(" ", row((ABSENT, {"forbidden_words": ["y"]}))).score == 0.0


def test_the_list_may_stand_in_a_column_as_json_or_as_values() -> None:
    constraints = [{"id": PRESENT, "kwargs": {"keywords": ["tea"], "num_words": None}}]
    assert check("tea", constraints, source="meta").score == 1.0
    assert check("tea", json.dumps(constraints), source="meta").score == 1.0


@pytest.mark.parametrize(
    "reference",
    [
        None,
        "",
        "tea",
        "{}",
        "[]",
        '["tea"]',
        '[{"kwargs": {}}]',
        json.dumps([{"id": JSON, "kwargs": {}, "weight": 2}]),
        json.dumps([{"id": JSON}] * (MAX_CONSTRAINTS + 1)),
        json.dumps([{"id": JSON}, {"id": "keywords:unheard_of"}]),
        json.dumps([{"id": ["a"]}]),
        json.dumps([{"id": JSON, "kwargs": [1]}]),
        row((WORDS, {"relation": "about", "num_words": 3})),
        row((WORDS, {"relation": "at least"})),
        row((PRESENT, {"keywords": []})),
        row((PRESENT, {"keywords": [""]})),
        row((JSON, {"strict": True})),
    ],
)
def test_a_row_that_cannot_be_read_has_no_score(reference: object) -> None:
    verdict = check("tea", reference)
    assert (verdict.score, verdict.cause) == (None, InvalidCause.MALFORMED)


def test_constraints_of_your_own_join_by_name() -> None:
    extra = {"punctuation:no_comma": f"{__name__}:NoComma"}
    reference = row(("punctuation:no_comma", {}), (PRESENT, {"keywords": ["a"]}))
    assert check("a b", reference, extra=extra).score == 1.0
    assert check("a, b", reference, extra=extra).score == 0.5
    wrong = row(("punctuation:no_comma", {"x": 1}))
    assert check("a", wrong, extra=extra).cause is InvalidCause.MALFORMED
    config = PrincipleConfig(
        verifier="rewards.instructions:InstructionRules", options={"extra": {"x": "json:nothing"}}
    )
    with pytest.raises(ConfigError, match=r"options\.extra\.x"):
        build_verifier("instruction", config)


def test_at_least_three_kinds_ship() -> None:
    assert set(CONSTRAINTS) == {WORDS, PRESENT, ABSENT, BULLETS, JSON}
