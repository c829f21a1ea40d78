"""The protocol of deliberative search, and its reward by hand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.combine import combine_rewards
from rewards.environment import EnvironmentScore
from rewards.judging import RuleVerifier
from rewards.search import SearchAccuracy, SearchFormat, SearchReliability
from rewards.search_steps import MalformedError, SearchStep, read_step
from safeladder.config import RewardConfig
from safeladder.records import InvalidCause, ScoreRequest, Verdict, VerdictStatus

from .samples import sample


def turn(body: str, confidence: object = 7, thought: str = "so") -> str:
    return f"<think>{thought}</think>\n{body}\n<confidence>{confidence}</confidence>"


def talk(*turns: str, reference: str | None = "Oslo", **fields: Any) -> ScoreRequest:
    """A conversation of model turns with results in between."""
    rows = [[role, text] for one in turns for role, text in (("assistant", one), ("user", "<r>"))]
    return sample(
        "\n".join(turns), reference=reference, meta={"conversation": {"turns": rows[:-1]}}, **fields
    )


SEARCH = turn("<search>capital of Norway</search>", 2)


def judge(verifier: RuleVerifier, request: ScoreRequest) -> Verdict:
    return asyncio.run(verifier.score([request]))[0]


def reward(request: ScoreRequest, weight: float = 0.25) -> float:
    verifiers = {
        "form": SearchFormat(principle="form"),
        "accuracy": SearchAccuracy(principle="accuracy"),
        "reliability": SearchReliability(principle="reliability"),
    }
    verdicts = {name: judge(verifier, request) for name, verifier in verifiers.items()}
    weights = {"form": 0.1, "accuracy": 0.9, "reliability": weight}
    return combine_rewards(weights, verdicts, RewardConfig(gates=("form",), gates_earn=True))


@pytest.mark.parametrize(
    ("answer", "confidence", "label", "expected"),
    [
        ("Oslo", 6, "right and certain", 0.1 + 0.9 + 0.25),
        ("Oslo", 5, "right and unsure", 0.1 + 0.9),
        ("Bergen", 5, "wrong and unsure", 0.1 + 0.25),
        ("Bergen", 6, "wrong and certain", 0.1),
        ("the city of Oslo", 10, "right and certain", 1.25),
    ],
)
def test_the_four_cases_of_reliability_and_zeta_itself_is_not_confident(
    answer: str, confidence: int, label: str, expected: float
) -> None:
    request = talk(SEARCH, turn(f"<answer>{answer}</answer>", confidence))
    verdict = judge(SearchReliability(principle="p"), request)
    assert verdict.label == label
    assert verdict.score == float(label in ("right and certain", "wrong and unsure"))
    assert reward(request) == pytest.approx(expected)


@pytest.mark.parametrize(
    "turns",
    [
        [SEARCH, turn("<answer>Oslo</answer>").removesuffix("</confidence>")],
        [SEARCH],
        [turn("<answer>Oslo</answer>"), turn("<answer>Oslo</answer>")],
        ["Oslo"],
        [turn("<search>a</search>") + " and so", turn("<answer>Oslo</answer>", 9)],
    ],
)
def test_a_malformed_trajectory_earns_nothing_whatever_else_it_is(turns: list[str]) -> None:
    request = talk(*turns)
    assert reward(request) == 0.0
    assert judge(SearchReliability(principle="p"), request).label == "malformed"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no thought"),
        ("Oslo", "text outside the parts"),
        (turn("<answer>x</answer>") + ".", "text outside the parts"),
        ("<think>x</think>", "no action"),
        ("<answer>x</answer><confidence>1</confidence>", "no thought"),
        (turn("<search>a</search><search>b</search>"), "several actions"),
        (turn("<fetch>a</fetch>"), "unknown action"),
        (turn("<answer> \n</answer>"), "blank part"),
        (turn("<answer>x</answer>", thought=" "), "blank part"),
        ("<think>x</think><answer>y</answer>", "no confidence"),
        (turn("<answer>x</answer>", 11), "confidence is not 0 to 10"),
        (turn("<answer>x</answer>", "7.5"), "confidence is not 0 to 10"),
        (turn("<answer>x</answer>", "\u0667"), "confidence is not 0 to 10"),
        ("<think>x</think><confidence>7</confidence><answer>y</answer>", "parts out of order"),
        ("<think>x<answer>y</answer></think><answer>y</answer>", "tag within a part"),
        (turn("<search><result>a</result></search>"), "tag within a part"),
        ("<think>x</think><answer>y", "part not closed"),
        ("<think>x</think>" * 3 + "<answer>y</answer>", "no confidence"),
    ],
)
def test_every_way_to_be_malformed_has_a_name(text: str, fault: str) -> None:
    with pytest.raises(MalformedError, match=f"^{fault}$"):
        read_step(text)


def test_an_action_that_is_not_allowed_is_malformed() -> None:
    with pytest.raises(MalformedError, match="forbidden action"):
        read_step(turn("<read>a</read>"), actions=("search", "answer"))
    for actions, said in ((("searhc", "answer"), "'searhc' is none of"), (("search",), "answer")):
        with pytest.raises(ValueError, match=said):
            SearchFormat(principle="p", actions=actions)


PLAIN = st.text(st.characters(exclude_characters="<>"), min_size=1).filter(str.strip)


@given(PLAIN, st.sampled_from(["search", "read", "answer"]), PLAIN, st.integers(0, 10))
def test_what_is_well_formed_is_read_as_it_was_written(
    thought: str, action: str, argument: str, confidence: int
) -> None:
    text = turn(f"<{action}>{argument}</{action}>", confidence, thought)
    assert read_step(text) == SearchStep(thought.strip(), action, argument.strip(), confidence)


@given(st.text(st.sampled_from("<>/thinkasr cofde10 \n")))
def test_whatever_a_model_says_is_a_step_or_has_a_name(text: str) -> None:
    with contextlib.suppress(MalformedError):
        assert read_step(text).action in ("search", "read", "answer")


def test_tools_say_nothing_in_the_name_of_the_model() -> None:
    rows = [["assistant", SEARCH], ["user", turn("<answer>Oslo</answer>", 9)]]
    request = sample(SEARCH, reference="Oslo", meta={"conversation": {"turns": rows}})
    assert judge(SearchFormat(principle="p"), request).label == "no answer"


def test_a_row_without_a_reference_is_invalid_and_no_number() -> None:
    request = talk(turn("<answer>Oslo</answer>"), reference=None)
    for verifier in (SearchAccuracy(principle="p"), SearchReliability(principle="p")):
        assert judge(verifier, request).cause is InvalidCause.ERROR
    assert judge(SearchFormat(principle="p"), request).score == 1.0


def test_a_reward_of_the_environment_is_scaled_or_invalid() -> None:
    def said(facts: dict[str, Any], **options: Any) -> Verdict:
        request = sample("x", meta={"conversation": {"turns": [], "facts": facts}})
        return judge(EnvironmentScore(principle="p", **options), request)

    assert said({"reward": 1}).score == 1.0
    assert said({"reward": 0.0}, low=-1.0).score == 0.5
    assert said({"reward": 2.0}).cause is InvalidCause.OUT_OF_RANGE
    for facts in ({}, {"reward": None}, {"reward": True}, {"reward": "1"}):
        assert said(facts).cause is InvalidCause.ERROR
    assert said({"reward": float("nan")}).status is VerdictStatus.INVALID
    assert judge(EnvironmentScore(principle="p"), sample("x")).cause is InvalidCause.ERROR
    with pytest.raises(ValueError, match="low must be below high"):
        EnvironmentScore(principle="p", low=1.0)
