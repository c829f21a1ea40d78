"""verl: ``compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs)``."""

from __future__ import annotations

from typing import Any

from rewards.adapters.function import FunctionVerifier
from rewards.adapters.sandbox import SandboxOptions
from rewards.adapters.scores import Scale, entry
from safeladder.records import ScoreRequest


class VerlReward(FunctionVerifier):
    """A custom reward function of verl, sync or async, returning a float or ``{"score": ...}``.

    ``data_source`` is the column of that name, else the route; ``extra_info`` the column of that
    name, else all columns. ``reward_kwargs`` are merged in and win, as upstream. There is no
    reward-model router.
    """

    convention = "verl"

    def __init__(
        self,
        *,
        principle: str,
        function: str,
        reward_kwargs: dict[str, Any] | None = None,
        low: float = 0.0,
        high: float = 1.0,
        optional: bool = False,
        sandbox: SandboxOptions | None = None,
    ) -> None:
        self._kwargs = dict(reward_kwargs or {})
        more = {"reward_kwargs": self._kwargs}
        self._set_up(principle, function, Scale(low, high, optional), sandbox, more)

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """Keyword arguments, by name."""
        return {
            "data_source": request.meta.get("data_source", request.route),
            "solution_str": request.response,
            "ground_truth": request.reference,
            "extra_info": request.meta.get("extra_info", dict(request.meta)),
            **self._kwargs,
        }

    def pick(self, answer: Any) -> Any:
        """The float, or the mapping's ``score``."""
        return entry(answer, "score") if isinstance(answer, dict) else answer
