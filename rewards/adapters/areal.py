"""AReaL: ``f(prompt, completions, prompt_ids, completion_ids, **row) -> float | RewardResult``."""

from __future__ import annotations

from typing import Any

from rewards.adapters.function import FunctionVerifier, columns, prompt_text
from rewards.adapters.scores import entry
from safeladder.records import ScoreRequest

_OWN = frozenset({"prompt", "completions", "prompt_ids", "completion_ids"})


class ArealReward(FunctionVerifier):
    """A reward function of AReaL, sync or async; of a ``RewardResult`` the ``final_reward`` counts.

    ``prompt`` and ``completions`` are text, the token ids are None. The function need not be
    picklable.
    """

    convention = "areal"

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """Two texts and the row; a column can not take the place of an argument."""
        row = {name: value for name, value in columns(request).items() if name not in _OWN}
        return {"prompt": prompt_text(request), "completions": request.response, "row": row}

    def pick(self, answer: Any) -> Any:
        """The float, or ``final_reward``."""
        return entry(answer, "final_reward") if isinstance(answer, dict) else answer
