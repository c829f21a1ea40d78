"""A verifier whose mood is a word in a file: ``ok``, ``hang`` or ``error``."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rewards.judging import Judgment, SampleVerifier
from safeladder.records import ScoreRequest


class Switched(SampleVerifier):
    """Scores by the number of letters ``e``, when it is in the mood."""

    def __init__(self, *, principle: str, switch: str) -> None:
        super().__init__(principle, {})
        self._switch = Path(switch)

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        mood = self._switch.read_text()
        if mood == "hang":
            await asyncio.sleep(3600)
        if mood == "error":
            raise RuntimeError("out of order")
        return Judgment(min(1.0, request.response.count("e") / 10))
