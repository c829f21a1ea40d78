"""Progressive construction of preference pairs (FollowSoftConstraints, arXiv 2501.04945, figure).

With I_k the seed and its first k constraints, and o_k the answer to I_k::

    o_w0 = o_0
    for k = 1..n:  (o_wk, o_lk) = Judger(I_k, o_w(k-1), o_k)
    preference pair k = (prompt I_k, chosen o_wk, rejected o_lk)
    SFT row           = (prompt I_n, output o_wn)

The winner so far meets the new answer, which need not be better for having seen one constraint
more. The released code compares with a fresh answer to I_(k-1) instead; here the figure counts.
Knows no model: answers and comparisons come from outside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """How an answer fared against the winner so far."""

    NEW = "new"
    """It won."""
    OLD = "old"
    """The earlier winner won."""
    TIE = "tie"
    DISAGREE = "disagree"
    """The judge's choice depended on the order in which it was shown the answers."""
    INVALID = "invalid"
    """The judge's reply said nothing."""
    BLANK = "blank"
    """There was no answer, or none yet to compare it with: nobody was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """One row of preference training."""

    num_constraints: int
    """k, from 1."""
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WinnerChain:
    """What became of one seed."""

    steps: tuple[Step, ...]
    """For k = 1..n."""
    pairs: tuple[PreferencePair, ...]
    """Only of steps that the judge decided, the same way in both orders."""
    winner: str | None
    """o_wn, None if every answer was blank."""


Compare = Callable[[int, str, str], Awaitable[Step]]
"""(k, earlier winner, new answer) to NEW, OLD, TIE, DISAGREE or INVALID."""


async def winner_chain(
    instructions: Sequence[str], answers: Sequence[str], compare: Compare
) -> WinnerChain:
    """[n + 1] instructions I_0..I_n and the answers to them, to the chain of winners.

    Where the judge did not decide, the earlier winner stays and there is no pair. A blank answer
    never wins, and makes no pair either: how not to answer is nothing to learn by contrast.
    """
    if len(instructions) != len(answers):
        raise ValueError(f"{len(answers)} answers to {len(instructions)} instructions")
    winner = answers[0] if answers[0].strip() else None
    steps: list[Step] = []
    pairs: list[PreferencePair] = []
    for k, (instruction, answer) in enumerate(zip(instructions, answers, strict=True)):
        if k == 0:
            continue
        if winner is None or not answer.strip():
            steps.append(Step.BLANK)
            winner = winner or (answer if answer.strip() else None)
            continue
        step = await compare(k, winner, answer)
        steps.append(step)
        if step in (Step.NEW, Step.OLD):
            chosen, rejected = (answer, winner) if step is Step.NEW else (winner, answer)
            pairs.append(
                PreferencePair(
                    num_constraints=k, prompt=instruction, chosen=chosen, rejected=rejected
                )
            )
            winner = chosen
    return WinnerChain(steps=tuple(steps), pairs=tuple(pairs), winner=winner)
