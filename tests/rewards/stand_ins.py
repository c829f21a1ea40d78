"""Verifiers and completers that misbehave on purpose; loaded by name in the tests of this room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from safeladder.errors import VerifierUnavailableError
from safeladder.records import InvalidCause, Message, ScoreRequest


class WordRule(RuleVerifier):
    """1 if the answer holds the word; some words make it fail."""

    def __init__(
        self,
        *,
        principle: str,
        word: str,
        weight: float = 1.0,
        mode: Literal["any", "all"] = "any",
        bounds: dict[str, int] | None = None,
    ) -> None:
        if not word:
            raise ValueError("word must not be empty")
        super().__init__(principle, {"word": word, "weight": weight, "mode": mode, "b": bounds})
        self.word = word
        self.weight = weight

    def judge(self, request: ScoreRequest) -> Judgment:
        if "raise" in request.answer:
            raise RuntimeError("a bug")
        if "abstain" in request.answer:
            raise UnjudgedError(InvalidCause.ABSTAIN, "no opinion")
        if "gone" in request.answer:
            raise VerifierUnavailableError("connection lost")
        if "nan" in request.answer:
            return Judgment(float("nan"))
        if "high" in request.answer:
            return Judgment(1.5)
        return Judgment(self.weight if self.word in request.answer else 0.0)


@dataclass
class Misbehaving:
    """A verifier whose ``score`` does whatever it is given."""

    behave: Callable[[Sequence[ScoreRequest]], Any]
    name: str = "test:Misbehaving"
    version: str = "1"

    async def start(self) -> None: ...

    async def score(self, requests: Sequence[ScoreRequest]) -> Any:
        answer = self.behave(requests)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def close(self) -> None: ...


@dataclass
class ScriptedCompleter:
    """Replies by what stands in the last message, and remembers the batches."""

    replies: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    batches: list[list[str]] = field(default_factory=list)

    is_closed: bool = False

    async def close(self) -> None:
        self.is_closed = True

    async def complete(self, messages: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        if self.fault == "broken":
            raise OSError("no such model")
        if messages[0][-1].content == "Say yes.":
            return ["yes"]
        self.batches.append([conversation[-1].content for conversation in messages])
        if self.fault == "raise":
            raise RuntimeError("out of memory")
        if self.fault and any(self.fault in text for text in self.batches[-1]):
            raise ValueError(f"cannot read {self.fault}")
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault == "short":
            return []
        return [
            next((reply for key, reply in self.replies.items() if key in text), "no label")
            for text in self.batches[-1]
        ]


@dataclass
class ScriptedScorer(ScriptedCompleter):
    """Also prices labels: ``logprobs`` maps a word of the prompt to one log-prob a label."""

    logprobs: dict[str, list[float]] = field(default_factory=dict)

    async def label_logprobs(
        self, conversations: Sequence[Sequence[Message]], labels: Sequence[str]
    ) -> list[list[float]]:
        texts = [conversation[-1].content for conversation in conversations]
        self.batches.append(texts)
        return [next(p for key, p in self.logprobs.items() if key in text) for text in texts]


@dataclass
class SeeingCompleter:
    """Says how many images it was shown, and remembers which; the first call is the warm-up."""

    reads_images = True
    seen: list[dict[str, Sequence[bytes]]] = field(default_factory=list)

    async def close(self) -> None: ...

    async def complete(
        self,
        messages: Sequence[Sequence[Message]],
        max_tokens: int,
        images: Sequence[Sequence[bytes]] = (),
    ) -> list[str]:
        if images:
            texts = [conversation[-1].content for conversation in messages]
            self.seen.append(dict(zip(texts, images, strict=True)))
        return [str(len(shown)) for shown in images]

    async def label_logprobs(
        self,
        conversations: Sequence[Sequence[Message]],
        labels: Sequence[str],
        images: Sequence[Sequence[bytes]] = (),
    ) -> list[list[float]]:
        counts = await self.complete(conversations, 1, images)
        return [[-float(count)] * len(labels) for count in counts]


class Unfit:
    """No verifier at all."""
