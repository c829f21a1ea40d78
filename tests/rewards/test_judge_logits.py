"""A judge that compares how likely its labels are, for models that write no label."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from rewards.completers import Local
from rewards.label_scores import judge_by_logprobs
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause
from tests.rewards.judge_play import COMPLETER, ask_endpoint, judge, score
from tests.rewards.samples import sample
from tests.rewards.stand_ins import ScriptedScorer

SCORER = "tests.rewards.stand_ins:ScriptedScorer"
TABLE = {
    "alpha": [math.log(0.03), math.log(0.01)],
    "beta": [math.log(0.1), math.log(0.4)],
    "gamma": [math.nan, 0.0],
    "delta": [0.0],
}


def by_logits(template: str = "value", **options: Any) -> Any:
    script = {"logprobs": TABLE}
    return judge(template, completer=SCORER, completer_options=script, mode="logits", **options)


def test_the_softmax_over_the_labels_is_the_score() -> None:
    verdicts = score(by_logits(logit_score="prob"), "alpha", "beta")
    assert [v.score for v in verdicts] == [pytest.approx(0.75), pytest.approx(0.2)]
    assert [v.label for v in verdicts] == ["good", "bad"]
    assert verdicts[0].evidence == "good 0.750, bad 0.250; 0.04 of all mass"


def test_a_hard_score_goes_by_the_threshold() -> None:
    assert [v.score for v in score(by_logits(), "alpha", "beta")] == [1.0, 0.0]
    assert [v.score for v in score(by_logits(threshold=0.8), "alpha", "beta")] == [0.0, 0.0]
    assert [v.score for v in score(by_logits(threshold=0.2), "alpha", "beta")] == [1.0, 1.0]


def test_knowledge_by_logits_is_the_published_formula_and_a_blank_answer_is_zero() -> None:
    verifier = by_logits("knowledge", logit_score="prob")
    verdicts = score(verifier, "alpha", "<think>alpha</think>", reference="gold")
    assert [v.score for v in verdicts] == [pytest.approx((0.75 + 1 - 0.25) / 2), 0.0]


def test_labels_that_the_model_would_hardly_say_give_no_verdict() -> None:
    verdicts = score(by_logits(min_mass=0.1), "alpha", "beta")
    assert [(v.score, v.cause) for v in verdicts] == [(None, InvalidCause.MALFORMED), (0.0, None)]
    assert verdicts[0].evidence == "the labels have 0.04 of all mass, less than 0.1"


def test_a_judge_that_says_none_of_its_labels_is_not_believed_unless_one_asks_for_it() -> None:
    failed = {"alpha": [math.log(1.3e-4), math.log(0.5e-4)]}  # 0.018 % for both labels
    options = {"completer": SCORER, "completer_options": {"logprobs": failed}, "mode": "logits"}
    (verdict,) = score(judge("value", **options), "alpha")
    assert (verdict.score, verdict.cause) == (None, InvalidCause.MALFORMED)
    assert verdict.evidence == "the labels have 0.00018 of all mass, less than 0.01"
    (believed,) = score(judge("value", **options, min_mass=0), "alpha")
    assert believed.score == 1.0


def test_log_probs_that_are_none_are_no_score() -> None:
    verdicts = score(by_logits(logit_score="prob"), "gamma", "delta")
    assert [(v.score, v.cause) for v in verdicts] == [(None, InvalidCause.MALFORMED)] * 2


def test_many_labels_have_an_expected_score_or_that_of_the_likeliest() -> None:
    scores = {"a": 1.0, "b": 0.1, "c": 0.0}
    logprobs = [math.log(0.2), math.log(0.5), math.log(0.3)]
    assert judge_by_logprobs(logprobs, scores, "prob", 0.5).score == pytest.approx(0.25)
    hard = judge_by_logprobs(logprobs, scores, "hard", 0.5)
    assert (hard.score, hard.label) == (0.1, "b")


def test_very_small_probabilities_do_not_vanish() -> None:
    judgment = judge_by_logprobs([-900.0, -901.0], {"a": 1.0, "b": 0.0}, "prob", 0.5)
    assert judgment.score == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "general", "completer": SCORER}, "cannot tell '0' from '0.5'"),
        ({"template": "value", "completer": COMPLETER}, "needs a completer with label_logprobs"),
        ({"template": "value", "completer": SCORER, "threshold": 2}, "threshold"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        judge(mode="logits", **options)


def test_mode_and_threshold_are_part_of_the_version() -> None:
    versions = {by_logits().version, by_logits(threshold=0.4).version}
    versions |= {by_logits(logit_score="prob").version, by_logits(score_chain=True).version}
    versions.add(by_logits(min_mass=0.1).version)
    assert len(versions) == 5


def test_questions_about_the_same_labels_share_a_batch() -> None:
    made = ScriptedScorer(logprobs={"a": [-1.0, -2.0], "b": [-2.0, -1.0]})

    async def run() -> list[list[float]]:
        local = Local(lambda: made, {}, timeout_s=30, batch_size=8)
        await local.start()
        asked = [local.label_logprobs(sample("", text).messages, ["x", "y"]) for text in "ab"]
        found = await asyncio.gather(*asked)
        await local.close()
        return list(found)

    assert asyncio.run(run()) == [[-1.0, -2.0], [-2.0, -1.0]]
    assert made.batches == [["a", "b"]]


def top_tokens(tokens: list[tuple[object, object]]) -> str:
    likely = [{"token": token, "logprob": logprob} for token, logprob in tokens]
    return json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": likely}]}}]})


def test_an_endpoint_is_asked_for_its_first_token() -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, str]:
        return 200, top_tokens([(" good", math.log(0.2)), ("Good", math.log(0.1)), ("bad", -1.2)])

    options = {"template": "value", "mode": "logits", "logit_score": "prob"}
    (verdict,), seen = ask_endpoint(answer, **options)
    assert verdict.score == pytest.approx(0.3 / (0.3 + math.exp(-1.2)))
    body = seen[1]["body"]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)


@pytest.mark.parametrize(
    "text",
    [
        top_tokens([("good", -0.1), ("the", -3.0)]),
        top_tokens([("good", -0.1), ("ba", -3.0)]),
        top_tokens([("good", -0.1), ("bad", None)]),
        top_tokens([("good", 5.0), ("bad", -3.0)]),
        top_tokens([("good", -0.1), ("bad", -math.inf)]),
        top_tokens([]),
        json.dumps({"choices": [{"logprobs": None, "message": {"content": "good"}}]}),
        json.dumps({"choices": []}),
    ],
)
def test_a_label_without_a_log_prob_is_invalid_and_never_zero(text: str) -> None:
    async def answer(_: dict[str, Any]) -> tuple[int, str]:
        return 200, text

    (verdict,), _ = ask_endpoint(answer, template="value", mode="logits")
    assert (verdict.score, verdict.cause) == (None, InvalidCause.MALFORMED)
