"""The verifier of constraints: rows in three shapes, one score, evidence for each constraint."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rewards.building import build_verifier
from rewards.constraints.reward import STUBS, blend, check, read_marks, reward_floor
from rewards.constraints.rows import MAX_CONSTRAINTS, stated
from rewards.instructions import InstructionRules
from safeladder.config import PrincipleConfig
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, Verdict, VerdictStatus
from tests.rewards.samples import sample

PRESENT = "keywords:existence"
COMMA = "punctuation:no_comma"
QUOTES = "startend:quotation"
WORDS = "length_constraints:number_words"
FEW = {"id": WORDS, "kwargs": {"relation": "less than", "num_words": 9}}
TEA = {"id": PRESENT, "kwargs": {"keywords": ["tea"]}}


class Crashes:
    """A constraint whose rule fails."""

    def is_met(self, answer: str) -> bool:
        raise OSError(f"no lexicon for {answer}")


class NoDash:
    """A constraint from outside."""

    def is_met(self, answer: str) -> bool:
        return "-" not in answer


EXTRA = {"my:crash": f"{__name__}:Crashes", "my:no_dash": f"{__name__}:NoDash"}


def judge(answer: str, *, reference: object = None, meta: Any = None, **options: Any) -> Verdict:
    verifier = InstructionRules(principle="instruction", **options)
    request = sample(f"<think>x</think>{answer}", reference=reference, meta=meta or {})
    (verdict,) = asyncio.run(verifier.score([request]))
    return verdict


def row(*entries: dict[str, Any]) -> str:
    return json.dumps(entries)


def test_the_score_is_the_weighted_share_that_is_met() -> None:
    three = row(TEA, {"id": COMMA}, {"id": QUOTES, "weight": 2})
    verdict = judge("a cup of tea please", reference=three)
    assert (verdict.score, verdict.label) == (0.5, "2 of 3")
    assert read_marks(verdict.evidence) == (True, True, False)
    assert verdict.evidence is not None
    assert verdict.evidence.endswith(f"missed: {QUOTES}")


def test_mean_share_moves_the_score_from_the_mean_to_all_or_nothing() -> None:
    two = row(TEA, {"id": QUOTES})
    scores = [judge("a cup of tea", reference=two, mean_share=a).score for a in (1.0, 0.5, 0.0)]
    assert scores == [0.5, 0.25, 0.0]
    assert judge('"a cup of tea"', reference=two, mean_share=0.0).score == 1.0


def test_rows_of_ifeval_are_read_as_they_are() -> None:
    meta = {
        "instruction_id_list": [PRESENT, COMMA],
        "kwargs": [{"keywords": ["tea"], "num_words": None}, {}],
        "constraints": ["Use the word tea", "No commas"],
    }
    assert judge("tea, if you please", meta=meta).score == 0.5
    assert judge("tea, if you please", meta={**meta, "weights": [3.0, 1.0]}).score == 0.75


def test_the_list_may_stand_in_a_column_as_values_or_in_the_reference_as_json() -> None:
    assert judge("a cup of tea", meta={"constraints": [TEA]}).score == 1.0
    assert judge("a cup of tea", meta={"asked": [TEA]}, meta_key="asked").score == 1.0
    assert judge("a cup of tea", reference=row(TEA)).score == 1.0


def test_only_the_visible_answer_counts_and_a_blank_one_meets_nothing() -> None:
    forbids_x = row({"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": ["x"]}})
    assert judge("a cup of tea", reference=forbids_x).score == 1.0
    verdict = judge(" ", reference=forbids_x)
    assert (verdict.score, verdict.label) == (0.0, "0 of 1")


@pytest.mark.parametrize("stub", [*STUBS, "xxxxxxxxxxxx", "abc"])
def test_a_text_that_says_nothing_earns_nothing_in_the_hardened_reading(stub: str) -> None:
    free = row(FEW, {"id": COMMA})
    gated = judge(stub, reference=free)
    assert gated.score == 0.0
    assert gated.evidence == "++ floor 1.000; gated: hardly any letters"
    assert judge(stub, reference=free, subtract_floor=True).score == 0.0
    assert judge(stub, reference=free, reading="reference").score == 1.0
    assert judge("My answer is no.", reference=free).score == 1.0


def test_the_floor_is_reported_and_only_taken_off_when_asked() -> None:
    three = row(FEW, {"id": COMMA}, TEA, {"id": QUOTES})
    entries = stated(json.loads(three))
    assert reward_floor(entries, "hardened", 1.0) == 0.75  # two empty quotes
    verdict = judge("tea without a comma", reference=three)
    assert verdict.evidence is not None
    assert (verdict.score, verdict.evidence[:16]) == (0.75, "+++- floor 0.750")
    assert judge("tea without a comma", reference=three, subtract_floor=True).score == 0.0
    assert judge('"a cup of tea"', reference=three, subtract_floor=True).score == 0.25


def test_a_rule_that_crashes_is_masked_and_becomes_no_number() -> None:
    verdict = judge("a cup of tea", reference=row(TEA, {"id": "my:crash"}), extra=EXTRA)
    assert (verdict.score, verdict.label) == (1.0, "1 of 2")
    assert read_marks(verdict.evidence) == (True, None)
    other = judge("a cup of cha", reference=row(TEA, {"id": "my:crash"}), extra=EXTRA)
    assert other.score == 0.0
    two_of_three = row(TEA, {"id": "my:crash"}, {"id": "my:crash"})
    dropped = judge("a cup of tea", reference=two_of_three, extra=EXTRA)
    assert (dropped.score, dropped.cause) == (None, InvalidCause.ERROR)
    assert dropped.evidence == "2 of 3 rules crashed"


def test_a_keyword_that_is_no_expression_masks_the_published_reading_only() -> None:
    odd = row({"id": PRESENT, "kwargs": {"keywords": ["(C"]}}, TEA)
    assert judge("a book on (C) and tea", reference=odd).score == 1.0
    assert read_marks(
        judge("a book on (C) and tea", reference=odd, reading="reference").evidence
    ) == (
        None,
        True,
    )


def test_every_constraint_keeps_its_verdict_in_the_longest_evidence() -> None:
    entries = [{**TEA, "weight": 1.0}] * MAX_CONSTRAINTS
    verdict = judge("no such word here", reference=row(*entries))
    assert read_marks(verdict.evidence) == (False,) * MAX_CONSTRAINTS


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
        row({"id": COMMA, "strict": True}),
        row({"id": COMMA, "weight": 0}),
        row({"id": COMMA, "weight": "2"}),
        row(*[{"id": COMMA}] * (MAX_CONSTRAINTS + 1)),
        row({"id": COMMA}, {"id": "keywords:unheard_of"}),
        row({"id": ["a"]}),
        row({"id": COMMA, "kwargs": [1]}),
        row({"id": WORDS, "kwargs": {"relation": "about", "num_words": 3}}),
    ],
)
def test_a_row_that_cannot_be_read_has_no_score(reference: object) -> None:
    verdict = judge("a cup of tea", reference=reference)
    assert (verdict.score, verdict.cause) == (None, InvalidCause.MALFORMED)


@pytest.mark.parametrize(
    "meta",
    [
        {"instruction_id_list": [COMMA]},
        {"instruction_id_list": [COMMA], "kwargs": [{}, {}]},
        {"instruction_id_list": [], "kwargs": []},
        {"instruction_id_list": [COMMA], "kwargs": [{}], "weights": [1.0, 2.0]},
        {"instruction_id_list": COMMA, "kwargs": [{}]},
    ],
)
def test_columns_that_do_not_fit_each_other_are_malformed(meta: Any) -> None:
    assert judge("a cup of tea", meta=meta).cause is InvalidCause.MALFORMED


def test_soft_constraints_are_left_to_a_judge() -> None:
    soft = {"id": "style:open_ended", "kwargs": {}}
    verdict = judge("a cup of tea", reference=row(soft, TEA))
    assert (verdict.score, verdict.label) == (1.0, "1 of 1")
    assert judge("a cup of tea", reference=row(soft)).status is VerdictStatus.NOT_APPLICABLE


def test_constraints_of_your_own_join_by_name() -> None:
    entries = row({"id": "my:no_dash"}, TEA)
    assert judge("a cup of tea", reference=entries, extra=EXTRA).score == 1.0
    assert judge("a cup of tea - hot", reference=entries, extra=EXTRA).score == 0.5
    wrong = row({"id": "my:no_dash", "kwargs": {"x": 1}})
    assert judge("a", reference=wrong, extra=EXTRA).cause is InvalidCause.MALFORMED


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"extra": {"x": "json:nothing"}}, r"options\.extra\.x"),
        ({"mean_share": 1.5}, r"mean_share must be between 0 and 1, got 1\.5"),
        ({"min_letters": -1}, r"min_letters must be 0 or more, got -1"),
        ({"reading": "loose"}, r"options\.reading"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(options: dict[str, Any], told: str) -> None:
    config = PrincipleConfig(verifier="rewards.instructions:InstructionRules", options=options)
    with pytest.raises(ConfigError, match=told):
        build_verifier("instruction", config)


def test_what_is_left_of_a_blend_when_outcomes_are_masked() -> None:
    entries = stated([{"id": COMMA, "weight": 3.0}, {"id": QUOTES}])
    assert blend(entries, check(entries, "a b", "hardened"), 1.0) == 0.75
    assert blend(entries, (None, False), 1.0) == 0.0
