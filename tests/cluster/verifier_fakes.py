"""Real verifiers for tests of the service: they score, count, wait or misbehave on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from safeladder.records import Message, ScoreRequest, Verdict, VerdictStatus


class LengthVerifier:
    """Scores by the length of the response; counts what it was asked."""

    name = "tests:LengthVerifier"
    version = "1"

    def __init__(self, principle: str = "safety", version: str = "1") -> None:
        self.principle = principle
        self.version = version
        self.num_calls = 0
        self.is_closed = False
        self.gate: asyncio.Event | None = None
        """If set to an event, a call waits for it."""
        self.asked = asyncio.Semaphore(0)
        """Released once by every call."""

    async def start(self) -> None: ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self.num_calls += 1
        self.asked.release()
        if self.gate is not None:
            await self.gate.wait()
        return [self.verdict(request) for request in requests]

    def verdict(self, request: ScoreRequest) -> Verdict:
        return Verdict(
            sample_id=request.sample_id,
            principle=self.principle,
            verifier=self.name,
            verifier_version=self.version,
            status=VerdictStatus.OK,
            score=min(1.0, len(request.response) / 100),
            evidence=f"{len(request.images)} images",
        )

    async def close(self) -> None:
        self.is_closed = True


class FailingVerifier(LengthVerifier):
    """Raises a text that must stay inside the service's process."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self.num_calls += 1
        raise RuntimeError("boom")


def make_request(index: int = 0, response: str = "an answer", **fields: Any) -> ScoreRequest:
    defaults: dict[str, Any] = {
        "sample_id": f"0/3/{index}",
        "attempt": 1,
        "messages": (Message("user", "a question"),),
        "response": response,
        "finish_reason": "stop",
        "num_tokens": 4,
        "route": "safety",
    }
    return ScoreRequest(**{**defaults, **fields})
