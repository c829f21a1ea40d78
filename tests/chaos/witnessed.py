"""A verifier that keeps its own account of what it judged, and whose mood is a word in a file:
``ok``; ``wait``: not before the word changes; ``hang``; ``error``."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

from rewards.judging import Judgment, SampleVerifier
from safeladder.records import ScoreRequest

SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)
DULL_EVERY = 6
"""Siblings of every sixth prompt earn the same, so that their group is filtered."""
LOOK_EVERY_S = 0.02


class Witnessed(SampleVerifier):
    """Draws a score from the response, and appends one line for each sample to ``folder``."""

    def __init__(self, *, principle: str, folder: str) -> None:
        super().__init__(principle, {})
        self._mood = Path(folder) / f"{principle}.mood"
        self._log = Path(folder) / f"{principle}.judged"

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        while (mood := self._mood.read_text()) == "wait":  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(LOOK_EVERY_S)
        if mood == "hang":
            await asyncio.sleep(3600)
        score = self._score(request)
        row = {
            "sample_id": request.sample_id,
            "attempt": request.attempt,
            "response": hashlib.sha256(request.response.encode()).hexdigest(),
            "score": None if mood == "error" else score,
            "pid": os.getpid(),
        }
        append(self._log, json.dumps(row))
        if mood == "error":
            raise RuntimeError("out of order")
        return Judgment(score)

    def _score(self, request: ScoreRequest) -> float:
        ordinal = int(request.sample_id.split("/")[1])
        if ordinal % DULL_EVERY == DULL_EVERY - 1:
            return 0.5
        digest = hashlib.sha256(f"{request.sample_id} {request.response}".encode()).digest()
        return SCORES[digest[0] % len(SCORES)]


def append(path: Path, line: str) -> None:
    """One line, whole, whoever else appends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
