"""The think/answer form and stopping in time."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.format import StopWithinLimit, ThinkFormat
from tests.rewards.samples import sample


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<think>I add them.</think> 4", 1),
        ("\n<think>\nI add them.\n</think>\n\n4", 1),
        ("4", 0),
        ("<think>   </think> 4", 0),
        ("<think>a</think> <think>b</think> 4", 0),
        ("<think>a</think></think> 4", 0),
        ("<think>I add them.</think>  \n", 0),
        ("</think> a <think> 4", 0),
        ("Unseen by verifiers. <think>I add them.</think> 4", 0),
    ],
)
def test_only_one_filled_think_block_and_an_answer_count(response: str, score: float) -> None:
    # the prompt of every sample holds a full example, which must not help (bug B1)
    assert ThinkFormat(principle="format").judge(sample(response)).score == score


def test_a_template_that_opens_the_block_leaves_only_its_end_to_the_response() -> None:
    verifier = ThinkFormat(principle="format", opened_by_prompt=True)
    assert verifier.judge(sample("I add them.</think> 4")).score == 1
    assert verifier.judge(sample("<think>I add them.</think> 4")).score == 0


@pytest.mark.parametrize(
    ("response", "fields", "score", "label"),
    [
        ("4", {}, 1, "stopped"),
        ("4", {"finish_reason": "length"}, 0, "cut off"),
        ("<think>a</think>  ", {}, 0, "blank"),
        ("4", {"num_tokens": 20}, 1, "stopped"),
        ("4", {"num_tokens": 21}, 0, "too long"),
    ],
)
def test_stopping_counts_only_by_itself_with_an_answer_within_the_limit(
    response: str, fields: dict[str, Any], score: float, label: str
) -> None:
    judgment = StopWithinLimit(principle="stop", max_tokens=20).judge(sample(response, **fields))
    assert (judgment.score, judgment.label) == (score, label)
