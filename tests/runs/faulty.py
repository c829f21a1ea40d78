"""A verifier with a fault, to be named in a config."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from rewards.judging import Judgment, RuleVerifier, SampleVerifier
from safeladder.records import ScoreRequest


class Faulty(SampleVerifier):
    """Scores 1, but fails in its way on the samples whose ordinal or index is in ``ordinals`` or
    ``indexes``, modulo ``every``."""

    def __init__(
        self,
        *,
        principle: str,
        fault: Literal["raises", "hangs", "out_of_range"],
        every: int = 1,
        ordinals: list[int] | None = None,
        indexes: list[int] | None = None,
    ) -> None:
        super().__init__(principle, {"fault": fault, "every": every})
        self._fault = fault
        self._every = every
        self._ordinals = ordinals or []
        self._indexes = indexes or []

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        _, ordinal, index = (int(part) for part in request.sample_id.split("/"))
        is_struck = ordinal % self._every in self._ordinals or index % self._every in self._indexes
        if is_struck and self._fault == "raises":
            raise RuntimeError("the verifier stumbles")
        if is_struck and self._fault == "hangs":
            await asyncio.Event().wait()
        if is_struck and self._fault == "out_of_range":
            return Judgment(7.5)
        return Judgment(float(index % 3 == 0))


class Stuck(RuleVerifier):
    """Scores 1, but never returns from an answer with ``word`` in it: no event loop can tell."""

    def __init__(self, *, principle: str, word: str) -> None:
        super().__init__(principle, {"word": word})
        self._word = word

    def judge(self, request: ScoreRequest) -> Judgment:
        while self._word in request.answer:
            time.sleep(3600)
        return Judgment(1.0)
