"""The verifier role: completions in, verdicts out, and no exception for bad data on the way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from actors.verifier import ScoredGroup, ScorePayloadLost, VerifierActor
from safeladder.records import (
    Completion,
    GroupKey,
    Message,
    Prompt,
    RolloutGroup,
    ScoreRequest,
    Verdict,
    VerdictStatus,
)

KEY = GroupKey(0, 3)
T = TypeVar("T")


class DictStore:
    """A payload store in this process."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}

    async def put(self, value: Any) -> int:
        self.values[len(self.values)] = value
        return len(self.values) - 1

    async def get(self, handle: int) -> Any:
        return self.values[handle]


class RecordingVerifier:
    """Gives every second response full marks, and remembers what it was asked."""

    name = "tests:RecordingVerifier"
    version = "3"

    def __init__(self) -> None:
        self.asked: list[ScoreRequest] = []
        self.is_started = False
        self.is_closed = False

    async def start(self) -> None:
        self.is_started = True

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        self.asked.extend(requests)
        return [
            Verdict(
                sample_id=request.sample_id,
                principle="safety",
                verifier=self.name,
                verifier_version=self.version,
                status=VerdictStatus.OK,
                score=float(request.num_tokens % 2),
            )
            for request in requests
        ]

    async def close(self) -> None:
        self.is_closed = True


class HangingVerifier(RecordingVerifier):
    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        await asyncio.Event().wait()
        raise AssertionError


class RaisingVerifier(RecordingVerifier):
    async def score(self, requests: Sequence[ScoreRequest]) -> list[Verdict]:
        raise RuntimeError("broken")


def make_group(images: tuple[str, ...] = ()) -> RolloutGroup:
    prompt = Prompt(
        id="p1",
        messages=(Message("user", "How?"),),
        route="safety",
        reference="gold",
        images=images,
        lang="de",
        meta={"source": "x"},
    )
    completions = tuple(
        Completion(
            index=index,
            prompt_tokens=np.zeros(2, np.int32),
            tokens=np.zeros(index + 1, np.int32),
            behavior_logprobs=np.zeros(index + 1, np.float32),
            token_versions=np.zeros(index + 1, np.int32),
            text=f"answer {index}",
            finish_reason="stop" if index else "length",
        )
        for index in range(3)
    )
    return RolloutGroup(key=KEY, attempt=2, fence=1, prompt=prompt, completions=completions)


def make_actor(
    verifier: RecordingVerifier, group: RolloutGroup, timeout_s: float = 20.0
) -> VerifierActor:
    store = DictStore()
    store.values[0] = group
    return VerifierActor("v0", "safety", verifier, store, timeout_s)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


def test_every_completion_is_judged_with_all_that_a_verifier_may_know() -> None:
    verifier = RecordingVerifier()
    scored = run(make_actor(verifier, make_group()).score(0, KEY, 2))
    assert isinstance(scored, ScoredGroup)
    assert (scored.actor, scored.key, scored.attempt) == ("v0", KEY, 2)
    assert [v.sample_id for v in scored.verdicts] == ["0/3/0", "0/3/1", "0/3/2"]
    assert [v.score for v in scored.verdicts] == [1.0, 0.0, 1.0]
    assert verifier.asked[0] == ScoreRequest(
        sample_id="0/3/0",
        attempt=2,
        messages=(Message("user", "How?"),),
        response="answer 0",
        finish_reason="length",
        num_tokens=1,
        route="safety",
        reference="gold",
        lang="de",
        meta={"source": "x"},
    )


def test_only_the_asked_completions_are_judged() -> None:
    verifier = RecordingVerifier()
    scored = run(make_actor(verifier, make_group()).score(0, KEY, 2, indexes=(2, 0)))
    assert isinstance(scored, ScoredGroup)
    assert [v.sample_id for v in scored.verdicts] == ["0/3/2", "0/3/0"]
    assert [r.response for r in verifier.asked] == ["answer 2", "answer 0"]


def test_images_reach_the_verifier_as_bytes(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG")
    verifier = RecordingVerifier()
    run(make_actor(verifier, make_group((str(image),))).score(0, KEY, 2))
    assert [r.images for r in verifier.asked] == [(b"\x89PNG",)] * 3


@pytest.mark.parametrize("path", ["nowhere/a.png", "bad\0name"])
def test_an_unreadable_image_is_invalid_and_the_verifier_is_not_asked(path: str) -> None:
    verifier = RecordingVerifier()
    scored = run(make_actor(verifier, make_group((path,))).score(0, KEY, 2))
    assert isinstance(scored, ScoredGroup)
    assert [(v.status, v.cause, v.score) for v in scored.verdicts] == [
        ("invalid", "error", None)
    ] * 3
    assert verifier.asked == []


def test_a_payload_that_is_gone_is_an_answer_and_no_exception() -> None:
    async def scenario() -> None:
        actor = make_actor(RecordingVerifier(), make_group())
        lost = await actor.score(7, KEY, 2)
        assert lost == ScorePayloadLost(actor="v0", key=KEY, attempt=2, principle="safety")
        assert (await actor.status()).payloads_lost == 1

    run(scenario())


def test_a_verifier_that_hangs_or_raises_is_invalid_and_counted() -> None:
    async def scenario() -> None:
        for verifier, cause in ((HangingVerifier(), "timeout"), (RaisingVerifier(), "error")):
            actor = make_actor(verifier, make_group(), timeout_s=0.05)
            scored = await actor.score(0, KEY, 2)
            assert isinstance(scored, ScoredGroup)
            assert [(v.cause, v.score) for v in scored.verdicts] == [(cause, None)] * 3
            status = await actor.status()
            assert (status.verdicts, status.invalid) == ({"invalid": 3}, {cause: 3})

    run(scenario())


def test_the_status_counts_verdicts_and_measures_calls() -> None:
    async def scenario() -> None:
        verifier = RecordingVerifier()
        actor = make_actor(verifier, make_group())
        before = await actor.status()
        assert (before.calls, before.latency_p50_ms, before.latency_p99_ms) == (0, None, None)
        await actor.start()
        await asyncio.gather(actor.score(0, KEY, 2), actor.score(0, KEY, 2, indexes=(1,)))
        status = await actor.status()
        assert (status.verifier, status.verifier_version) == ("tests:RecordingVerifier", "3")
        assert (status.calls, status.verdicts, status.invalid) == (2, {"ok": 4}, {})
        assert status.latency_p50_ms is not None
        assert status.latency_p99_ms is not None
        assert status.latency_p50_ms <= status.latency_p99_ms
        await actor.close()
        assert verifier.is_started
        assert verifier.is_closed

    run(scenario())


def test_every_public_method_of_the_role_is_a_coroutine() -> None:
    methods = inspect.getmembers(VerifierActor, inspect.isfunction)
    public = [method for name, method in methods if not name.startswith("_")]
    assert public
    assert all(inspect.iscoroutinefunction(method) for method in public)
