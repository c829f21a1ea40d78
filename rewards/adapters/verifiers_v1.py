"""verifiers v1: ``async f(task, trace) -> float | mapping``, arguments filled by name."""

from __future__ import annotations

from typing import Any

from rewards.adapters.function import FunctionVerifier, columns, prompt_text
from rewards.adapters.sandbox import SandboxOptions
from rewards.adapters.scores import Scale, entry
from rewards.judging import UnjudgedError
from safeladder.records import InvalidCause, ScoreRequest


class V1Reward(FunctionVerifier):
    """A plugged reward (``fn="pkg.mod:fn"``) of verifiers v1, sync or async, with or without
    ``@vf.reward``; its weight is the route's business here.

    ``task`` has the row's columns and ``prompt``; ``trace`` one turn: ``task.data``, ``messages``,
    ``assistant_messages``, ``last_message``, ``last_reply``, ``transcript``, ``is_truncated``,
    ``num_turns``, ``num_output_tokens``, ``info``, ``state``. There is no runtime: as upstream
    without one, a function that demands ``runtime`` can not be scored, here INVALID(error). Of a
    mapping, ``key`` counts; without one it must have a single entry.
    """

    convention = "verifiers_v1"

    def __init__(
        self,
        *,
        principle: str,
        function: str,
        key: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        optional: bool = False,
        sandbox: SandboxOptions | None = None,
    ) -> None:
        self._key = key
        self._set_up(principle, function, Scale(low, high, optional), sandbox, {"key": key})

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """Attributes of the task, of the trace, and the messages of its one branch."""
        turns = [*request.messages, ("assistant", request.response)]
        row = columns(request)
        return {
            "task": {"idx": None, "name": None, **row, "prompt": prompt_text(request)},
            "messages": [{"role": role, "content": content} for role, content in turns],
            "trace": {
                "id": request.sample_id,
                "last_reply": request.response.strip(),
                "transcript": "\n\n".join(f"[{role}]\n{content}" for role, content in turns),
                "is_truncated": request.finish_reason == "length",
                "num_turns": 1,
                "num_output_tokens": request.num_tokens,
                "stop_condition": None,
                "is_completed": True,
                "ok": True,
                "errors": [],
                "info": {},
                "state": {},
                "rewards": {},
                "metrics": {},
            },
        }

    def pick(self, answer: Any) -> Any:
        """The float, or the one entry that counts."""
        if not isinstance(answer, dict):
            return answer
        if self._key is not None:
            return entry(answer, self._key)
        if len(answer) != 1:
            detail = f"returned {sorted(answer)[:8]}; say which counts with the option `key`"
            raise UnjudgedError(InvalidCause.MALFORMED, detail)
        return next(iter(answer.values()))
