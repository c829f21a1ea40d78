"""The rollout role on a real engine with a tiny model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import numpy as np
import pytest

from actors.lease_answers import GeneratedGroup
from actors.rollout import EngineFailedError, RolloutActor
from actors.transformers_engine import TransformersEngine
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.records import Completion, GenerationFailure, GroupKey, Lease, RolloutGroup
from safeladder.weight_payload import WeightPayload

from .conftest import DictStore, Laboratory, ask, draw, tiny_model, tiny_tokenizer


def lease(
    text: str = "hello",
    *,
    ordinal: int = 0,
    tokens: int = 6,
    deadline_s: float = 30.0,
    fence: int = 1,
    **more: Any,
) -> Lease:
    return Lease(
        key=GroupKey(0, ordinal), attempt=1, fence=fence, prompt=ask(text),
        sampling=draw(2, tokens), deadline_s=deadline_s, **more,
    )  # fmt: skip


class Stage:
    """A started role, its store and the laboratory of its engine."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        self.store = DictStore()
        self.actor = RolloutActor("rollout-0", lab.engine, self.store)

    def run(self, work: Any) -> Any:
        return self.lab.run(work)


@pytest.fixture(scope="module")
def lab(model_path: Path) -> Iterator[Laboratory]:
    engine = TransformersEngine(
        ModelConfig(path=model_path, dtype="float32"),
        RolloutConfig(max_prompt_tokens=80, max_new_tokens=200),
        seed=0,
    )
    with asyncio.Runner() as runner:
        lab = Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())})
        lab.run(engine.start())
        yield lab
        lab.run(engine.close())


@pytest.fixture
def stage(lab: Laboratory) -> Stage:
    return Stage(lab)


class BrokenEngine:
    """Fails at every token; ``error`` says how."""

    served_version = 0

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def start(self) -> None:
        pass

    async def generate(self, *_: Any) -> AsyncGenerator[Completion, None]:
        raise self.error
        yield

    async def pause(self) -> None:
        raise self.error

    async def load(self, *_: Any) -> None:
        raise self.error

    async def resume(self) -> None:
        pass

    async def close(self) -> None:
        pass


def test_a_lease_becomes_a_group_whose_header_describes_its_payload(stage: Stage) -> None:
    result = stage.run(stage.actor.generate(lease(ordinal=3)))
    assert isinstance(result, GeneratedGroup)
    group: RolloutGroup = stage.run(stage.store.get(result.payload))
    header = result.header
    assert (header.key, header.attempt, header.fence) == (GroupKey(0, 3), 1, 1)
    assert header.engine == "rollout-0"
    assert header.lengths == tuple(c.tokens.size for c in group.completions)
    assert [c.index for c in group.completions] == [0, 1]
    tokens = np.concatenate([c.tokens for c in group.completions]).astype("<i4")
    assert header.sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()
    status = stage.run(stage.actor.status())
    assert status.tokens_generated == sum(header.lengths)
    assert status.groups_in_flight == 0
    assert status.busy_s > 0


def test_a_passed_deadline_is_a_retryable_failure_and_frees_the_engine(stage: Stage) -> None:
    failure = stage.run(stage.actor.generate(lease(tokens=200, deadline_s=1e-3)))
    assert isinstance(failure, GenerationFailure)
    assert (failure.cause, failure.retryable) == ("deadline", True)
    assert not stage.lab.is_in_flight("0/0/1")


def test_a_prompt_too_long_is_never_tried_again(stage: Stage) -> None:
    failure = stage.run(stage.actor.generate(lease("x" * 80)))
    assert (failure.cause, failure.retryable) == ("prompt_too_long", False)


def test_an_engine_that_raises_is_a_retryable_failure(lab: Laboratory) -> None:
    actor = RolloutActor("r", BrokenEngine(ValueError("odd")), DictStore())
    failure = lab.run(actor.generate(lease()))
    assert (failure.cause, failure.retryable) == ("engine_error", True)
    assert failure.detail == "ValueError: odd"
    assert not lab.run(actor.status()).is_dead


@pytest.mark.parametrize("how", ["generate", "load_weights"])
def test_a_dead_engine_is_reported_and_refuses_everything(lab: Laboratory, how: str) -> None:
    manifest, raw = lab.prepare()
    store = DictStore()
    payload = lab.run(store.put_weights(raw))
    actor = RolloutActor("r", BrokenEngine(EngineFailedError("gone")), store)
    if how == "generate":
        lab.run(actor.generate(lease()))
    else:
        lab.run(actor.load_weights(manifest, payload))
    status = lab.run(actor.status())
    assert (status.is_dead, status.failure) == (True, "gone")
    assert lab.run(actor.generate(lease())).detail == "gone"
    assert lab.run(actor.load_weights(manifest, payload)).failure == "gone"


def test_an_update_reaches_a_group_in_flight_and_is_acknowledged(stage: Stage) -> None:
    async def work() -> tuple[GeneratedGroup, Any]:
        old = stage.lab.version
        manifest, raw = stage.lab.prepare()
        payload = await stage.store.put_weights(raw)
        running = asyncio.ensure_future(stage.actor.generate(lease(tokens=150)))
        await stage.lab.pause_after("0/0/1", 4)
        await stage.lab.engine.resume()
        status = await stage.actor.load_weights(manifest, payload)
        assert (status.served_version, status.digest) == (old + 1, manifest.digest)
        assert status.failure is None
        assert status.groups_in_flight == 1
        return await running, old

    result, old = stage.run(work())
    assert (result.header.min_version, result.header.max_version) == (old, old + 1)


@pytest.mark.parametrize("fault", ["corrupted", "lost"])
def test_a_failed_update_is_reported_and_the_engine_serves_on(stage: Stage, fault: str) -> None:
    old = stage.lab.version
    manifest, raw = stage.lab.prepare()
    payload = WeightPayload(chunks=("nowhere",))
    if fault == "corrupted":
        raw["model.norm.weight"] = raw["model.norm.weight"][::-1].copy()
        payload = stage.run(stage.store.put_weights(raw))
    status = stage.run(stage.actor.load_weights(manifest, payload))
    assert status.failure.startswith("ChecksumError" if fault == "corrupted" else "KeyError")
    assert (status.served_version, status.is_dead) == (old, False)
    assert isinstance(stage.run(stage.actor.generate(lease())), GeneratedGroup)


def test_a_version_that_is_already_served_is_acknowledged_without_loading(stage: Stage) -> None:
    manifest, raw = stage.lab.prepare()
    payload = stage.run(stage.store.put_weights(raw))
    stage.run(stage.actor.load_weights(manifest, payload))
    stage.store.values.clear()
    status = stage.run(stage.actor.load_weights(manifest, payload))
    assert (status.failure, status.digest) == (None, manifest.digest)


def test_an_older_version_is_refused(stage: Stage) -> None:
    older, raw = stage.lab.prepare()
    payload = stage.run(stage.store.put_weights(raw))
    stage.run(stage.actor.load_weights(older, payload))
    newer, raw = stage.lab.prepare()
    stage.run(stage.actor.load_weights(newer, stage.run(stage.store.put_weights(raw))))
    assert "is older than" in stage.run(stage.actor.load_weights(older, payload)).failure


def test_a_driver_with_an_older_fence_is_refused(stage: Stage) -> None:
    stage.run(stage.actor.generate(lease(fence=5)))
    failure = stage.run(stage.actor.generate(lease(fence=4)))
    assert (failure.cause, failure.retryable) == ("engine_error", False)
    manifest, raw = stage.lab.prepare()
    status = stage.run(stage.actor.load_weights(manifest, stage.run(stage.store.put_weights(raw))))
    assert status.failure == "fence 1 is older than 5"


def test_a_lease_that_the_actor_does_not_finish_before_it_closes_is_a_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.lab.engine, "close", AsyncMock())  # the other tests need it

    async def work() -> GenerationFailure | GeneratedGroup:
        running = asyncio.ensure_future(stage.actor.generate(lease(tokens=200)))
        await stage.lab.pause_after("0/0/1", 1)
        await stage.lab.engine.resume()
        await stage.actor.close()
        return await running

    failure = stage.run(work())
    assert isinstance(failure, GenerationFailure)
    assert failure.retryable
    assert "the actor closes" in failure.detail
    assert stage.run(stage.actor.status()).groups_in_flight == 0


def test_the_same_lease_twice_is_refused_while_it_runs(stage: Stage) -> None:
    async def work() -> tuple[Any, Any]:
        return await asyncio.gather(stage.actor.generate(lease()), stage.actor.generate(lease()))

    first, second = stage.run(work())
    assert isinstance(first, GeneratedGroup)
    assert "already in flight" in second.detail
