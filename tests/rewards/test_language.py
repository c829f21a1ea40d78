"""Language consistency."""

from __future__ import annotations

import pytest

from rewards.language import LanguageConsistency
from tests.rewards.samples import sample

ENGLISH, CHINESE = "Why is the sky blue?", "天空为什么是蓝色的？"


@pytest.mark.parametrize(
    ("question", "response", "score"),
    [
        (ENGLISH, "<think>light scatters</think> Because of air.", 1),
        (CHINESE, "<think>光会散射</think> 因为空气。", 1),
        (CHINESE, "<think>光会散射</think> Because of air.", 0),
        (ENGLISH, "<think>光会散射</think> Because of air.", 0),
        (ENGLISH, "Because of air.", 0),
        ("2 + 2 = ?", "<think>2 + 2</think> 4", 1),
        ("2 + 2 = ?", "<think>二加二等于四</think> It is four.", 0),
    ],
)
def test_question_chain_and_answer_must_share_a_language(
    question: str, response: str, score: float
) -> None:
    verifier = LanguageConsistency(principle="language")
    assert verifier.judge(sample(response, question)).score == score


def test_models_without_a_chain_are_judged_by_their_answer_when_the_format_is_not_required() -> (
    None
):
    verifier = LanguageConsistency(principle="language", require_format=False)
    assert verifier.judge(sample("Because of air.", ENGLISH)).score == 1
    assert verifier.judge(sample("因为空气。", ENGLISH)).score == 0
    assert verifier.judge(sample("", ENGLISH)).score == 0


def test_the_lang_column_can_say_what_is_expected() -> None:
    options = {"expected": "lang", "require_format": False}
    verifier = LanguageConsistency(principle="language", **options)  # type: ignore[arg-type]
    assert verifier.judge(sample("因为空气。", ENGLISH, lang="zh-CN")).score == 1
    assert verifier.judge(sample("Because of air.", ENGLISH, lang="zh-CN")).score == 0
