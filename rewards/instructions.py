"""Instruction following: the verifier of constraints that a program can check.

The types and their rules stand in ``rewards.constraints``; here a request becomes a verdict.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from typing import Any

from rewards.building import load_object
from rewards.constraints.language import load_detector
from rewards.constraints.port import Reading
from rewards.constraints.reward import (
    MIN_LETTERS,
    MaskedError,
    blend,
    check,
    marks,
    reward_floor,
    says_something,
)
from rewards.constraints.rows import Stated, listed, stated
from rewards.constraints.vocabulary import HARD, SOFT
from rewards.judging import Judgment, NotApplicableError, RuleVerifier, UnjudgedError
from safeladder.records import InvalidCause, ScoreRequest


class InstructionRules(RuleVerifier):
    """How well the visible answer follows the constraints of its row; a blank one meets none.

    The row has IFEval's columns ``instruction_id_list`` and ``kwargs``, or a list of
    ``{"id", "kwargs", "weight"}`` in the column ``meta_key`` or, as JSON, in ``reference``. A row
    without constraints, an unknown id or wrong kwargs is INVALID(malformed), however many of the
    others are met. Score: ``mean_share`` times the weighted mean of the outcomes, plus the rest if
    all are met, and 0 for an answer of fewer than ``min_letters`` letters. A rule that crashes is
    masked; if more than half do, the verdict is INVALID(error). Soft constraints are passed over; a
    row with no others is NOT_APPLICABLE.

    ``reading``: ``hardened`` for reward, ``reference`` for figures to be compared with others',
    without that gate. The evidence begins with one mark for each constraint (``+`` met, ``-``
    missed, ``?`` masked) and the row's reward floor; ``subtract_floor`` takes it off the score,
    which then begins at 0 where junk ends. ``extra``: further ids → ``module:Class`` (port:
    ``rewards.constraints.port.Constraint``).
    """

    code_version = "2"

    def __init__(
        self,
        *,
        principle: str,
        reading: Reading = "hardened",
        mean_share: float = 1.0,
        min_letters: int = MIN_LETTERS,
        subtract_floor: bool = False,
        meta_key: str = "constraints",
        extra: dict[str, str] | None = None,
    ) -> None:
        if not 0 <= mean_share <= 1:
            raise ValueError(f"mean_share must be between 0 and 1, got {mean_share}")
        if min_letters < 0:
            raise ValueError(f"min_letters must be 0 or more, got {min_letters}")
        options = {
            "reading": reading,
            "mean_share": mean_share,
            "min_letters": min_letters,
            "subtract_floor": subtract_floor,
            "meta_key": meta_key,
            "extra": extra or {},
        }
        super().__init__(principle, options)
        where = f"principles.{principle}.options.extra"
        known = dict(HARD) | {
            name: load_object(path, f"{where}.{name}") for name, path in (extra or {}).items()
        }
        self._reading = reading
        self._mean_share = mean_share
        self._min_letters = min_letters if reading == "hardened" else 0
        self._subtract_floor = subtract_floor
        self._meta_key = meta_key
        self._known = known
        self._parse = lru_cache(maxsize=4096)(self._read)

    async def start(self) -> None:
        """Load the language detector now: the first answer would else wait half a second."""
        await asyncio.to_thread(load_detector)

    def judge(self, request: ScoreRequest) -> Judgment:
        """Check each; the evidence says how each came out."""
        constraints, floor = self._constraints(request)
        answer = request.answer
        outcomes = check(constraints, answer, self._reading)
        try:
            score = blend(constraints, outcomes, self._mean_share)
        except MaskedError as error:
            raise UnjudgedError(InvalidCause.ERROR, str(error)) from None
        is_gated = not says_something(answer, self._min_letters)
        earned = 0.0 if is_gated else score
        if self._subtract_floor:
            earned = max(0.0, earned - floor)
        names = [one.id for one, met in zip(constraints, outcomes, strict=True) if met is False]
        evidence = f"{marks(outcomes)} floor {floor:.3f}"
        evidence += "; gated: hardly any letters" if is_gated else ""
        evidence += f"; missed: {', '.join(names)}" if names else ""
        return Judgment(earned, f"{sum(o is True for o in outcomes)} of {len(outcomes)}", evidence)

    def _constraints(self, request: ScoreRequest) -> tuple[tuple[Stated, ...], float]:
        try:
            entries: list[Any] = listed(request.meta, request.reference, self._meta_key)
            return self._parse(json.dumps(entries, sort_keys=True))
        except (ValueError, TypeError) as error:
            raise UnjudgedError(InvalidCause.MALFORMED, str(error)) from None

    def _read(self, text: str) -> tuple[tuple[Stated, ...], float]:
        """The constraints of a row and its floor; the same for every answer to it."""
        entries = json.loads(text)
        ruled = [one for one in entries if not _is_soft(one)]
        if not ruled:
            raise NotApplicableError("all constraints of the row are soft: a judge reads them")
        constraints = stated(ruled, self._known)
        return constraints, reward_floor(constraints, self._reading, self._mean_share)


def _is_soft(entry: Any) -> bool:
    name = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(name, str) and name in SOFT
