"""Functions written to each project's documented signature run as they are."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from safeladder.records import InvalidCause, ScoreRequest, VerdictStatus
from tests.rewards.adapters.running import built, verdicts
from tests.rewards.samples import sample

pytestmark = pytest.mark.process

FOUR = sample("It is 4", "What is 2 + 2?", reference="4", sample_id="0/3/0")
FIVE = sample("5", "What is 2 + 3?", reference="5", sample_id="0/3/1")
GSM8K = replace(FOUR, meta={"data_source": "openai/gsm8k", "extra_info": {"index": 3}})
LONG = replace(FIVE, finish_reason="length")

CASES: list[tuple[str, str, dict[str, Any], list[ScoreRequest], list[float]]] = [
    ("trl:TrlReward", "trl_rewards.py:reward_words", {}, [FOUR, FIVE], [0.3, 0.1]),
    ("trl:TrlReward", "trl_rewards.py:reward_exact", {}, [FOUR, FIVE], [0, 1]),
    ("trl:TrlReward", "trl_rewards.py:reward_async", {}, [FOUR], [0.5]),
    ("trl:TrlReward", "trl_rewards.py:reward_no_columns", {}, [FOUR], [1]),
    ("trl:TrlReward", "trl_rewards.py:reward_numpy", {}, [FOUR, FIVE], [0.25, 0.25]),
    ("verl:VerlReward", "verl_rewards.py:compute_score", {}, [GSM8K], [1]),
    ("verl:VerlReward", "verl_rewards.py:compute_score_async", {}, [GSM8K], [0.3]),
    (
        "verl:VerlReward",
        "verl_rewards.py:with_details",
        {"reward_kwargs": {"weight": 0.5}},
        [FOUR, FIVE],
        [0.5, 0.5],
    ),
    (
        "openrlhf:OpenRlhfReward",
        "openrlhf_rewards.py:reward_func",
        {"low": -1},
        [FOUR, FIVE],
        [0, 1],
    ),
    ("openrlhf:OpenRlhfReward", "openrlhf_plain.py:reward_func", {}, [FOUR], [1]),
    ("slime:SlimeReward", "slime_rewards.py:custom_rm", {}, [FOUR, FIVE, LONG], [0, 1, 0]),
    (
        "slime:SlimeReward",
        "slime_rewards.py:custom_rm_dict",
        {"reward_key": "score"},
        [FOUR],
        [0.75],
    ),
    (
        "slime:SlimeGroupReward",
        "slime_rewards.py:batched_custom_rm",
        {},
        [FOUR, FIVE],
        [1, 1 / 7],
    ),
    ("areal:ArealReward", "areal_rewards.py:gsm8k_reward_fn", {}, [FOUR, LONG], [1, 1]),
    ("areal:ArealReward", "areal_rewards.py:step_reward_fn", {"high": 2}, [FOUR], [0.25]),
    ("verifiers_v1:V1Reward", "v1_rewards.py:exact_match", {}, [FOUR, FIVE], [0, 1]),
    ("verifiers_v1:V1Reward", "v1_rewards.py:short_enough", {}, [FIVE, LONG], [1, 0]),
    ("verifiers_v1:V1Reward", "v1_rewards.py:keyed", {"key": "content"}, [FOUR], [0.25]),
]


@pytest.mark.parametrize(
    ("cls", "function", "options", "requests", "scores"), CASES, ids=[c[1] for c in CASES]
)
def test_a_function_of_another_project_runs_unedited(
    cls: str,
    function: str,
    options: dict[str, Any],
    requests: list[ScoreRequest],
    scores: list[float],
) -> None:
    found = verdicts(built(cls, function, **options), *requests)
    assert [v.score for v in found] == pytest.approx(scores), [v.evidence for v in found]
    assert [v.sample_id for v in found] == [r.sample_id for r in requests]
    assert {v.verifier for v in found} == {f"rewards.adapters.{cls}"}


FAULTS: list[tuple[str, str, dict[str, Any], InvalidCause, str]] = [
    ("trl:TrlReward", "trl_rewards.py:reward_too_few", {}, InvalidCause.MALFORMED, "1 values for"),
    ("trl:TrlReward", "trl_rewards.py:reward_not_a_list", {}, InvalidCause.MALFORMED, "a list"),
    ("trl:TrlReward", "trl_rewards.py:reward_token_lengths", {}, InvalidCause.ERROR, "TypeError"),
    ("trl:TrlReward", "trl_rewards.py:reward_math_only", {}, InvalidCause.ERROR, "'task'"),
    ("openrlhf:OpenRlhfReward", "openrlhf_plain.py:no_rewards", {}, InvalidCause.MALFORMED, "rewa"),
    ("slime:SlimeReward", "slime_rewards.py:custom_rm_dict", {}, InvalidCause.MALFORMED, "no num"),
    ("slime:SlimeReward", "slime_rewards.py:unknown_attribute", {}, InvalidCause.ERROR, "n_sampl"),
    ("verifiers_v1:V1Reward", "v1_rewards.py:keyed", {}, InvalidCause.MALFORMED, "option `key`"),
    ("verifiers_v1:V1Reward", "v1_rewards.py:one_key", {}, InvalidCause.ABSTAIN, "None"),
    ("verifiers_v1:V1Reward", "v1_rewards.py:needs_runtime", {}, InvalidCause.ERROR, "runtime"),
]


@pytest.mark.parametrize(
    ("cls", "function", "options", "cause", "words"), FAULTS, ids=[f[1] for f in FAULTS]
)
def test_what_a_convention_does_not_allow_is_invalid_for_every_sample(
    cls: str, function: str, options: dict[str, Any], cause: InvalidCause, words: str
) -> None:
    found = verdicts(built(cls, function, **options), FOUR, FIVE)
    assert [(v.status, v.cause, v.score) for v in found] == [
        (VerdictStatus.INVALID, cause, None)
    ] * 2
    assert all(words in str(v.evidence) for v in found), found[0].evidence
    if cls == "trl:TrlReward":
        assert all("all 2 samples" in str(v.evidence) for v in found)


def test_a_group_of_one_needs_a_list_too() -> None:
    (verdict,) = verdicts(built("trl:TrlReward", "trl_rewards.py:reward_not_a_list"), FOUR)
    assert verdict.cause is InvalidCause.MALFORMED


def test_trls_none_is_not_applicable_only_where_that_is_allowed() -> None:
    math, other = replace(FOUR, meta={"task": "math"}), replace(FIVE, meta={"task": "code"})
    function = "trl_rewards.py:reward_math_only"
    found = verdicts(built("trl:TrlReward", function, optional=True), math, other)
    assert [v.status for v in found] == [VerdictStatus.OK, VerdictStatus.NOT_APPLICABLE]
    found = verdicts(built("trl:TrlReward", function), math, other)
    assert [(v.score, v.cause) for v in found] == [(1, None), (None, InvalidCause.ABSTAIN)]
