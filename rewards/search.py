"""The three principles of deliberative search: form, accuracy, and confidence that can be relied
on.

With r_format as the gate that also earns (``reward.gates_earn``) and the weight of reliability
under a constraint, the reward of a trajectory is that of Deliberative Searcher (arXiv 2507.16727)::

    r_final  = r_format * (0.1 * r_format + 0.9 * r_acc + lambda * r_reliab)
    r_reliab = 1 if (right and confidence > zeta) or (wrong and confidence <= zeta), else 0

The piecewise form and zeta = 5 are inferred from summaries of the paper.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from rewards.exact import ExactAnswer, references_of
from rewards.judging import Judgment, RuleVerifier
from rewards.search_steps import ACTIONS, MalformedError, Trajectory, read_trajectory
from safeladder.records import ScoreRequest

ZETA: Final = 5
MALFORMED: Final = "malformed"
Match = Literal["auto", "number", "text", "phrase"]


class SearchFormat(RuleVerifier):
    """1 if every turn follows the protocol of ``rewards.search_steps`` and the last one answers,
    else 0; the label is ``well-formed`` or what is wrong."""

    is_quick = True

    def __init__(self, *, principle: str, actions: tuple[str, ...] = ACTIONS) -> None:
        super().__init__(principle, {"actions": require_actions(actions)})
        self._actions = actions

    def judge(self, request: ScoreRequest) -> Judgment:
        """Parse all turns."""
        try:
            steps = read_trajectory(request, self._actions).steps
        except MalformedError as error:
            return Judgment(0.0, str(error))
        return Judgment(1.0, "well-formed", f"{len(steps)} steps")


class SearchAccuracy(RuleVerifier):
    """1 if the answer part is the reference or one of its aliases (``rewards.exact:ExactAnswer``
    with ``match``), else 0. A malformed trajectory has no answer: 0."""

    is_quick = True

    def __init__(self, *, principle: str, match: Match = "auto", aliases: str = "aliases") -> None:
        super().__init__(principle, {"match": match, "aliases": aliases})
        self._grader = _Grader(principle, match, aliases)

    def judge(self, request: ScoreRequest) -> Judgment:
        """Compare the last answer; evidence is what was read as the answer."""
        trajectory = self._grader.read(request)
        if trajectory is None:
            return Judgment(0.0, MALFORMED)
        return self._grader.grade(request, trajectory)


class SearchReliability(RuleVerifier):
    """1 for right and confident or wrong and not confident, else 0. Confident is above ``zeta``.

    Labels: ``right and certain``, ``right and unsure``, ``wrong and certain``, ``wrong and
    unsure``, ``malformed``; the share of the third over all is the false-certain rate.
    """

    is_quick = True

    def __init__(
        self,
        *,
        principle: str,
        zeta: int = ZETA,
        match: Match = "auto",
        aliases: str = "aliases",
    ) -> None:
        if not 0 <= zeta <= 9:
            raise ValueError(f"zeta must be 0 to 9, got {zeta}: confidence goes from 0 to 10")
        super().__init__(principle, {"zeta": zeta, "match": match, "aliases": aliases})
        self._zeta = zeta
        self._grader = _Grader(principle, match, aliases)

    def judge(self, request: ScoreRequest) -> Judgment:
        """Hold the confidence stated with the answer against its correctness."""
        trajectory = self._grader.read(request)
        if trajectory is None:
            return Judgment(0.0, MALFORMED)
        is_right = self._grader.grade(request, trajectory).score == 1.0
        is_certain = trajectory.confidence > self._zeta
        label = f"{'right' if is_right else 'wrong'} and {'certain' if is_certain else 'unsure'}"
        return Judgment(float(is_right is is_certain), label, f"confidence {trajectory.confidence}")


def require_actions(actions: tuple[str, ...]) -> tuple[str, ...]:
    """The actions, if there are such. Raises ``ValueError`` for one that is none, or for a list in
    which nobody can answer."""
    if unknown := [action for action in actions if action not in ACTIONS]:
        raise ValueError(f"actions: {unknown[0]!r} is none of {', '.join(ACTIONS)}")
    if "answer" not in actions:
        raise ValueError("actions: without 'answer' no trajectory can end")
    return actions


class _Grader:
    """Trajectory and reference to right or wrong."""

    def __init__(self, principle: str, match: Match, aliases: str) -> None:
        self._exact = ExactAnswer(principle=principle, match=match, aliases=aliases)
        self._aliases = aliases

    def read(self, request: ScoreRequest) -> Trajectory | None:
        """The trajectory, or None if it is malformed. Raises ``UnjudgedError`` without a
        reference, whatever the trajectory is: a fault of the data."""
        references_of(request, self._aliases)
        try:
            return read_trajectory(request)
        except MalformedError:
            return None

    def grade(self, request: ScoreRequest, trajectory: Trajectory) -> Judgment:
        """1 for the right answer, else 0."""
        return self._exact.judge(msgspec.structs.replace(request, response=trajectory.answer))
