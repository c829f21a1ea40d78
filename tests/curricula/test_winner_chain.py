"""Progressive construction: who meets whom, and which steps make a pair."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from curricula.winner_chain import Step, WinnerChain, winner_chain

INSTRUCTIONS = ["I0", "I1", "I2", "I3"]


def chain(
    answers: Sequence[str], says: Sequence[Step], seen: list[tuple[int, str, str]] | None = None
) -> WinnerChain:
    """The chain under a judge that says these things in turn."""
    script = iter(says)

    async def judge(k: int, earlier: str, new: str) -> Step:
        if seen is not None:
            seen.append((k, earlier, new))
        return next(script)

    return asyncio.run(winner_chain(INSTRUCTIONS[: len(answers)], answers, judge))


def test_the_earlier_winner_meets_each_new_answer_not_the_answer_before() -> None:
    seen: list[tuple[int, str, str]] = []
    found = chain(["o0", "o1", "o2", "o3"], [Step.OLD, Step.NEW, Step.OLD], seen)
    assert seen == [(1, "o0", "o1"), (2, "o0", "o2"), (3, "o2", "o3")]
    assert [(p.num_constraints, p.prompt, p.chosen, p.rejected) for p in found.pairs] == [
        (1, "I1", "o0", "o1"),
        (2, "I2", "o2", "o0"),
        (3, "I3", "o2", "o3"),
    ]
    assert found.winner == "o2"


def test_a_judge_that_always_prefers_the_old_answer_keeps_the_first_one() -> None:
    found = chain(["o0", "o1", "o2", "o3"], [Step.OLD] * 3)
    assert found.winner == "o0"
    assert {pair.chosen for pair in found.pairs} == {"o0"}


@pytest.mark.parametrize("undecided", [Step.TIE, Step.DISAGREE, Step.INVALID])
def test_what_the_judge_did_not_decide_makes_no_pair_and_changes_no_winner(
    undecided: Step,
) -> None:
    found = chain(["o0", "o1", "o2"], [undecided, Step.OLD])
    assert [pair.num_constraints for pair in found.pairs] == [2]
    assert (found.winner, found.steps) == ("o0", (undecided, Step.OLD))


def test_a_blank_answer_never_wins_and_nobody_is_asked_about_it() -> None:
    found = chain(["", " \n", "o2", "", "o4"][:4], [])
    assert found.steps == (Step.BLANK, Step.BLANK, Step.BLANK)
    assert (found.pairs, found.winner) == ((), "o2")
    assert chain(["", ""], []).winner is None


def test_an_answer_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 answers to 4"):
        asyncio.run(winner_chain(INSTRUCTIONS, ["a", "b", "c"], lambda *_: None))  # type: ignore[arg-type, return-value]
