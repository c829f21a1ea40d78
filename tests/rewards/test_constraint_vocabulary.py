"""Ids, conflicts and words of the vocabulary."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from typing import Any

import pytest

import rewards.constraints
from rewards.constraints.rows import stated
from rewards.constraints.templates import TEMPLATES, word
from rewards.constraints.vocabulary import CONFLICTS, HARD, SOFT, conflicting_pair
from tests.rewards.test_constraint_types import CASES

KWARGS: dict[str, dict[str, Any]] = {name: kwargs for name, kwargs, *_ in CASES}
MODULES = [module.name for module in pkgutil.iter_modules(rewards.constraints.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"rewards.constraints.{name}")
    assert doctest.testmod(module).failed == 0


def test_conflicts_are_symmetric_and_every_type_excludes_itself() -> None:
    assert set(CONFLICTS) == {*HARD, *SOFT}
    for name, others in CONFLICTS.items():
        assert name in others
        assert all(name in CONFLICTS[other] for other in others)


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("detectable_format:constrained_response", set()),
        (
            "detectable_format:json_format",
            {"keywords:forbidden_words", "keywords:existence"},
        ),
        (
            "combination:two_responses",
            {
                "keywords:forbidden_words",
                "keywords:existence",
                "language:response_language",
                "detectable_format:title",
                "punctuation:no_comma",
            },
        ),
        (
            "combination:repeat_prompt",
            {"keywords:existence", "detectable_format:title", "punctuation:no_comma"},
        ),
    ],
)
def test_what_excludes_nearly_everything_leaves_room_for_the_declared_few(
    name: str, beside: set[str]
) -> None:
    assert {*HARD, *SOFT} - CONFLICTS[name] == beside


def test_other_declared_conflicts_hold_in_both_directions() -> None:
    language = CONFLICTS["language:response_language"]
    assert {"startend:end_checker", "change_case:english_lowercase"} <= language
    assert "startend:quotation" in CONFLICTS["detectable_format:title"]
    assert "change_case:english_capital" in CONFLICTS["change_case:capital_word_frequency"]
    assert "punctuation:no_comma" not in language


def test_the_first_conflicting_pair_is_found_and_a_repeated_type_is_one() -> None:
    assert conflicting_pair(["punctuation:no_comma", "keywords:existence"]) is None
    twice = ["keywords:existence", "punctuation:no_comma", "keywords:existence"]
    assert conflicting_pair(twice) == ("keywords:existence", "keywords:existence")
    assert conflicting_pair(["style:open_ended", "style:open_ended"]) is not None


def test_every_hard_type_has_five_different_sentences_without_a_full_stop() -> None:
    assert set(TEMPLATES) == set(HARD)
    for sentences in TEMPLATES.values():
        assert len(set(sentences)) == len(sentences) >= 5
        assert not [text for text in sentences if text.endswith(".") or text != text.strip()]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_sentence_says_all_parameters(name: str) -> None:
    (one,) = stated([{"id": name, "kwargs": KWARGS[name]}])
    slots = one.constraint.slots()  # type: ignore[attr-defined]
    hidden = {"prompt_to_repeat"}
    for choice, sentence in enumerate(TEMPLATES[name]):
        assert set(re.findall(r"{(\w+)}", sentence)) == set(slots) - hidden
        assert "{" not in word(name, one.constraint, choice)  # type: ignore[arg-type]


def test_there_are_six_soft_types() -> None:
    assert len(SOFT) == 6
    assert all(len(set(asks)) == len(asks) >= 3 for asks in SOFT.values())
