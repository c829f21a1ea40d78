"""TRL: ``f(prompts, completions, completion_ids, ..., **columns) -> list[float | None]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.adapters.function import GroupFunctionVerifier, columns
from safeladder.records import ScoreRequest

_OWN = frozenset({"prompt", "prompts", "completions", "completion_ids"})


class TrlReward(GroupFunctionVerifier):
    """A reward function for TRL's GRPO and RLOO trainers, sync or async.

    Data are conversational: ``prompts`` holds lists of messages, ``completions`` lists of one
    assistant message. Every column of the data is a list, with None for a sample that lacks it.
    ``completion_ids`` is None, since token ids do not reach a verifier: a function that needs them
    fails, and its samples are INVALID(error). ``log_extra`` and ``log_metric`` take what they are
    given and do nothing.
    """

    convention = "trl"

    def group_job(self, requests: Sequence[ScoreRequest]) -> dict[str, Any]:
        """Keyword arguments, by name."""
        rows = [columns(request) for request in requests]
        names = {name: None for row in rows for name in row if name not in _OWN}
        return {name: [row.get(name) for row in rows] for name in names} | {
            "prompts": [[m._asdict() for m in request.messages] for request in requests],
            "completions": [
                [{"role": "assistant", "content": request.response}] for request in requests
            ],
            "completion_ids": None,
        }
