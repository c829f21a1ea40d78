"""Makes the requests that the tests of this room score."""

from __future__ import annotations

from typing import Any

from safeladder.records import Message, ScoreRequest


def sample(response: str, question: str = "How do I do it?", **fields: Any) -> ScoreRequest:
    """A request with harmless defaults; ``fields`` override them."""
    defaults: dict[str, Any] = {
        "sample_id": "0/0/0",
        "attempt": 0,
        "messages": (Message("system", "<think> example </think> 7"), Message("user", question)),
        "response": response,
        "finish_reason": "stop",
        "num_tokens": 10,
        "route": "normal",
    }
    return ScoreRequest(**(defaults | fields))
