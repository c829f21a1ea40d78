"""NeMo Gym: POST ``/seed_session``, then ``/verify``; the answer carries ``reward``."""

from __future__ import annotations

from typing import Any

from rewards.adapters.function import columns
from rewards.adapters.remote_verifier import RemoteVerifier
from rewards.adapters.scores import entry
from rewards.judging import Judgment, UnjudgedError
from safeladder.records import InvalidCause, ScoreRequest


class NemoGymRemote(RemoteVerifier):
    """A resources server of NeMo Gym, one session (cookies) for each sample.

    ``mask_sample: true`` is INVALID(error, retryable): the reward is no measurement of the policy.
    On a server without that field, a ``failure_reason`` is INVALID(error); on one with it, a reason
    beside ``mask_sample: false`` is diagnosis only, and the reward counts.
    """

    def body(self, request: ScoreRequest) -> dict[str, Any]:
        """The row's fields and the request as the Responses API has it."""
        turns = [message._asdict() for message in request.messages]
        return columns(request) | {"responses_create_params": {"input": turns}}

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Seed, then verify, with the session's cookies."""
        base = self.server.next_url().rstrip("/")
        body = self.body(request)
        async with self.server.new_client() as client:
            await self.server.post(f"{base}/seed_session", body, client)
            body |= {"response": _response(request)}
            answer = await self.server.post(f"{base}/verify", body, client)
        return self._scale.judgment(self.pick(answer))

    def pick(self, answer: Any) -> Any:
        """The ``reward``, unless the server says that it means nothing."""
        reward = entry(answer, "reward")
        masked = answer.get("mask_sample")
        reason = answer.get("failure_reason") or answer.get("failure_kind") or "no reason given"
        if masked is True:
            detail = f"masked by the server: {reason}"
            raise UnjudgedError(InvalidCause.ERROR, detail, retryable=True)
        if "mask_sample" in answer and masked is not False:
            raise UnjudgedError(InvalidCause.MALFORMED, "mask_sample is no boolean")
        if "mask_sample" not in answer and answer.get("failure_reason"):
            raise UnjudgedError(InvalidCause.ERROR, f"failed on the server: {reason}")
        return reward


def _response(request: ScoreRequest) -> dict[str, Any]:
    """A finished answer of the Responses API with one message."""
    text = {"type": "output_text", "text": request.response, "annotations": []}
    message = {
        **{"id": "msg_0", "type": "message", "role": "assistant", "status": "completed"},
        "content": [text],
    }
    return {
        **{"id": "resp_0", "object": "response", "created_at": 0, "model": "policy"},
        **{"output": [message], "parallel_tool_calls": False, "tool_choice": "auto", "tools": []},
    }
