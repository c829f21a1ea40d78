"""slime and miles: ``async f(args, sample)``, ``async f(args, samples)``, or ``--rm-url``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.adapters.function import FunctionVerifier, GroupFunctionVerifier, prompt_text
from rewards.adapters.remote_verifier import RemoteVerifier
from rewards.adapters.sandbox import SandboxOptions
from rewards.adapters.scores import Scale, entry
from safeladder.records import ScoreRequest


class SlimeFunction(FunctionVerifier):
    """What both forms share. ``args`` has the attributes of the option of that name and no others.

    A sample has ``prompt``, ``response``, ``label``, ``metadata``, ``response_length``, ``status``
    (of a ``Status`` enum), ``index``, ``group_index`` and empty ``tokens``; a function that reads
    anything else is INVALID(error). A mapping needs ``reward_key``.
    """

    def __init__(
        self,
        *,
        principle: str,
        function: str,
        args: dict[str, Any] | None = None,
        reward_key: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        optional: bool = False,
        sandbox: SandboxOptions | None = None,
    ) -> None:
        self._args = {"reward_key": reward_key, **(args or {})}
        self._reward_key = reward_key
        more = {"args": self._args}
        self._set_up(principle, function, Scale(low, high, optional), sandbox, more)

    def reward_of(self, value: Any) -> Any:
        """The float, or the entry under ``reward_key``."""
        return value if self._reward_key is None else entry(value, self._reward_key)


class SlimeReward(SlimeFunction):
    """A custom reward (``--custom-rm-path``) for one sample."""

    convention = "slime"

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """Attributes of ``args`` and ``sample``."""
        return {"args": self._args, "sample": sample_fields(request)}

    def pick(self, answer: Any) -> Any:
        """The one reward."""
        return self.reward_of(answer)


class SlimeGroupReward(SlimeFunction, GroupFunctionVerifier):
    """The batched form: one call with all samples of a group."""

    convention = "slime_group"

    def group_job(self, requests: Sequence[ScoreRequest]) -> dict[str, Any]:
        """Attributes of ``args`` and of each sample."""
        return {"args": self._args, "samples": [sample_fields(request) for request in requests]}

    def pick_one(self, value: Any) -> Any:
        """One sample's reward."""
        return self.reward_of(value)


class SlimeRemote(RemoteVerifier):
    """A server behind ``--rm-url``: its JSON answer *is* the reward."""

    def body(self, request: ScoreRequest) -> dict[str, Any]:
        """Prompt, response, label."""
        return {
            "prompt": prompt_text(request),
            "response": request.response,
            "label": request.reference,
        }


def sample_fields(request: ScoreRequest) -> dict[str, Any]:
    """Attributes of slime's ``Sample``, as far as a verifier knows them."""
    *_, ordinal, index = ("0", "0", *request.sample_id.split("/"))
    return {
        "prompt": prompt_text(request),
        "response": request.response,
        "label": request.reference,
        "metadata": dict(request.meta),
        "response_length": request.num_tokens,
        "status": "truncated" if request.finish_reason == "length" else "completed",
        "index": int(index) if index.isdecimal() else None,
        "group_index": int(ordinal) if ordinal.isdecimal() else None,
        "tokens": [],
        "reward": None,
        "remove_sample": False,
    }
