"""Every turn of a conversation judged by one verifier, the worst of them counts.

A verifier sees the answer behind the last ``</think>``, so that of a conversation it would see the
last turn alone. With this around it each turn is an answer of its own, to the turns before it: a
conversation is unsafe if any turn is (SafeLadder, section on multi-turn judging).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rewards.building import build_verifier, verifier_version
from rewards.judging import EVIDENCE_CHARS
from safeladder.config import PrincipleConfig
from safeladder.conversation import ASSISTANT, CONVERSATION
from safeladder.records import Message, ScoreRequest, Verdict, VerdictStatus


class EachTurn:
    """A ``ports.Verifier`` around another one: ``verifier`` and ``options`` as a principle has
    them.

    The verdict is that of the turn with the lowest score, the first of equal ones. A turn that is
    INVALID makes the whole INVALID, whatever the others are: it may have been the worst. Turns that
    the principle does not concern are passed over; if it concerns none, NOT_APPLICABLE. A sample
    that is no conversation has one turn.
    """

    def __init__(
        self,
        *,
        principle: str,
        verifier: str,
        options: dict[str, Any] | None = None,
        principle_timeout_s: float = 30.0,
    ) -> None:
        config = PrincipleConfig(
            verifier=verifier, options=options or {}, timeout_s=principle_timeout_s
        )
        self._inner = build_verifier(principle, config)

    @property
    def name(self) -> str:
        """The inner verifier's."""
        return f"each turn by {self._inner.name}"

    @property
    def version(self) -> str:
        """A hash of the inner verifier's."""
        return verifier_version("1", {"inner": [self._inner.name, self._inner.version]})

    @property
    def is_dead(self) -> bool:
        """Whether the inner verifier is."""
        return bool(getattr(self._inner, "is_dead", False))

    async def start(self) -> None:
        """Start the inner verifier."""
        await self._inner.start()

    async def close(self) -> None:
        """Close it."""
        await self._inner.close()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        """One verdict for each request, in order; all turns are asked in one call."""
        turns = [_turns(request) for request in requests]
        said = iter(await self._inner.score([turn for one in turns for turn in one]))
        return [self._worst([next(said) for _ in one]) for one in turns]

    def _worst(self, verdicts: Sequence[Verdict]) -> Verdict:
        def badness(place: int) -> tuple[int, float]:
            verdict = verdicts[place]
            if verdict.status is VerdictStatus.INVALID:
                return (0, 0.0)
            return (2, 0.0) if verdict.score is None else (1, verdict.score)

        worst = min(range(len(verdicts)), key=badness)
        evidence = f"turn {worst + 1} of {len(verdicts)}: {verdicts[worst].evidence or ''}"
        return msgspec.structs.replace(
            verdicts[worst],
            verifier=self.name,
            verifier_version=self.version,
            evidence=evidence[:EVIDENCE_CHARS],
            latency_ms=max(verdict.latency_ms for verdict in verdicts),
        )


def _turns(request: ScoreRequest) -> list[ScoreRequest]:
    """A request for each turn of the model, with what was said before it as the question."""
    conversation = request.meta.get(CONVERSATION)
    if conversation is None:
        return [request]
    meta = {key: value for key, value in request.meta.items() if key != CONVERSATION}
    messages, found = request.messages, []
    for role, text in conversation["turns"]:
        if role == ASSISTANT:
            found.append(
                msgspec.structs.replace(
                    request, messages=messages, response=text, finish_reason="stop", meta=meta
                )
            )
        messages = (*messages, Message(role, text))
    if not found:
        return [request]
    found[-1] = msgspec.structs.replace(found[-1], finish_reason=request.finish_reason)
    return found
