"""OpenRLHF: ``reward_func(queries, prompts, labels)`` in a file, or the same three over HTTP."""

from __future__ import annotations

from typing import Any

from rewards.adapters.function import FunctionVerifier, prompt_text
from rewards.adapters.remote_verifier import RemoteVerifier
from rewards.adapters.scores import entry, one_each
from safeladder.records import ScoreRequest


class OpenRlhfReward(FunctionVerifier):
    """A reward file of OpenRLHF (``--remote_rm_url file.py``), called with one sample at a time.

    ``queries`` is prompt and response in one text, without a chat template; ``labels`` the
    reference. Of the answer ``{"rewards", "scores", "extra_logs"}`` (tensors, arrays or lists) the
    ``rewards`` count, as upstream for the advantage.
    """

    convention = "openrlhf"

    def job(self, request: ScoreRequest) -> dict[str, Any]:
        """Three lists of one."""
        prompt = prompt_text(request)
        return {
            "queries": [prompt + request.response],
            "prompts": [prompt],
            "labels": [request.reference],
        }

    def pick(self, answer: Any) -> Any:
        """The one entry of ``rewards``."""
        return _only_reward(answer)


class OpenRlhfRemote(RemoteVerifier):
    """A reward server that speaks OpenRLHF's HTTP protocol."""

    def body(self, request: ScoreRequest) -> dict[str, Any]:
        """The key of the texts is ``query`` on the wire."""
        prompt = prompt_text(request)
        return {
            "query": [prompt + request.response],
            "prompts": [prompt],
            "labels": [request.reference],
        }

    def pick(self, answer: Any) -> Any:
        """The one entry of ``rewards``."""
        return _only_reward(answer)


def _only_reward(answer: Any) -> Any:
    """A tensor without dimensions is a number, not a list of one."""
    rewards = entry(answer, "rewards")
    return one_each(rewards, 1)[0] if isinstance(rewards, list) else rewards
