"""Leases that are stopped and go on: two rollout roles on real engines with a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.lease_answers import GeneratedGroup
from actors.rollout import RolloutActor
from actors.transformers_engine import TransformersEngine
from safeladder.config import ModelConfig
from safeladder.partials import InterruptedGroup, PartialGroup
from safeladder.records import GenerationFailure, GroupKey, Lease, RolloutGroup
from tests.tiny_model import tiny_model, tiny_tokenizer

from .conftest import DictStore, Laboratory, ask, draw, rollout_config

KEY = GroupKey(0, 0)


class Stage:
    """Two roles, as on two machines, and one store."""

    def __init__(self, labs: list[Laboratory]) -> None:
        self.labs = labs
        self.store = DictStore()
        self.first, self.second = (
            RolloutActor(f"rollout-{i}", lab.engine, self.store) for i, lab in enumerate(labs)
        )

    def run(self, work: Any) -> Any:
        return self.labs[0].run(work)

    def payload(self, answer: GeneratedGroup | InterruptedGroup) -> Any:
        return self.store.values[answer.payload]

    async def stopped(self, num_tokens: int, order: Lease) -> Any:
        """The first role's answer to a lease that is interrupted after so many tokens."""
        answer = asyncio.ensure_future(self.first.generate(order))
        await self.labs[0].pause_after(f"{order.key}/{order.attempt}", num_tokens)
        assert await self.first.interrupt(order.key, order.attempt, order.fence)
        await self.labs[0].engine.resume()
        return await answer


@pytest.fixture(scope="module")
def labs(model_path: Path) -> Iterator[list[Laboratory]]:
    model = ModelConfig(path=model_path, dtype="float32")
    with asyncio.Runner() as runner:
        engines = [TransformersEngine(model, rollout_config(), seed=0) for _ in range(2)]
        labs = [Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())}) for engine in engines]
        for lab in labs:
            lab.run(lab.engine.start())
        labs[1].run(labs[1].catch_up(1))
        yield labs
        for lab in labs:
            lab.run(lab.engine.close())


@pytest.fixture
def stage(labs: list[Laboratory]) -> Stage:
    return Stage(labs)


def lease(attempt: int = 1, **changes: Any) -> Lease:
    whole = Lease(
        key=KEY, attempt=attempt, fence=1, prompt=ask("hello"),
        sampling=draw(3, 60, seed=9), deadline_s=30.0, is_interruptible=True,
    )  # fmt: skip
    return replace(whole, **changes)


def test_an_interrupted_lease_goes_on_in_another_engine_and_no_token_is_lost(stage: Stage) -> None:
    answer = stage.run(stage.stopped(4, lease()))
    assert isinstance(answer, InterruptedGroup)
    part: PartialGroup = stage.payload(answer)
    header = answer.header
    assert (header.key, header.attempt, header.fence, header.engine) == (KEY, 1, 1, "rollout-0")
    assert (header.cause, header.num_tokens, header.min_version) == ("asked", part.num_tokens, 0)
    whole = stage.run(stage.second.generate(lease(2, begun=answer.payload)))
    assert isinstance(whole, GeneratedGroup)
    group: RolloutGroup = stage.payload(whole)
    assert [c.index for c in group.completions] == [0, 1, 2]
    for before in part.samples:
        after, k = group.completions[before.index], before.tokens.size
        assert k
        assert after.tokens[:k].tolist() == before.tokens.tolist()
        assert after.behavior_logprobs[:k].tolist() == before.behavior_logprobs.tolist()
        assert set(after.token_versions[:k].tolist()) == {0}
        assert set(after.token_versions[k:].tolist()) <= {1}
        assert after.tokens.size <= 60
    assert (whole.header.min_version, whole.header.max_version) == (0, 1)
    assert whole.header.generate_s > header.generate_s > 0
    made = [stage.run(actor.status()).tokens_generated for actor in (stage.first, stage.second)]
    assert made == [header.num_tokens, sum(whole.header.lengths) - header.num_tokens]


def test_a_group_can_be_interrupted_again_and_again(stage: Stage) -> None:
    handle, sizes = None, []
    for attempt, num_tokens in enumerate([3, 6, 9], start=1):
        order = lease(attempt, begun=handle, sampling=draw(2, 60, seed=3))
        answer = stage.run(stage.stopped(num_tokens, order))
        handle = answer.payload
        sizes.append(max(one.tokens.size for one in stage.payload(answer).samples))
    assert sizes == [3, 6, 9]


def test_a_lost_partial_payload_means_that_the_group_starts_anew(stage: Stage) -> None:
    answer = stage.run(stage.stopped(4, lease()))
    stage.store.values.clear()
    again = stage.run(stage.second.generate(lease(2, begun=answer.payload)))
    assert isinstance(again, GeneratedGroup)
    assert again.header.min_version == 1
    assert len(stage.payload(again).completions) == 3


def test_at_its_deadline_a_lease_is_answered_with_what_is_there(stage: Stage) -> None:
    async def work() -> Any:
        order = lease(deadline_s=0.05, sampling=draw(2, 200, seed=1))
        answer = asyncio.ensure_future(stage.first.generate(order))
        await stage.labs[0].pause_after(f"{KEY}/1", 2)
        await asyncio.sleep(0.1)
        await stage.labs[0].engine.resume()
        return await answer

    answer = stage.run(work())
    assert isinstance(answer, InterruptedGroup)
    assert answer.header.cause == "deadline"
    assert answer.header.num_tokens == stage.payload(answer).num_tokens > 0
    assert not stage.labs[0].is_in_flight(f"{KEY}/1")


def test_a_lease_without_a_token_is_answered_without_a_payload(stage: Stage) -> None:
    async def work() -> Any:
        await stage.labs[0].engine.pause()
        answer = asyncio.ensure_future(stage.first.generate(lease()))
        await asyncio.sleep(0)
        assert await stage.first.interrupt(KEY, 1, 1)
        await asyncio.sleep(0.01)
        await stage.labs[0].engine.resume()
        return await answer

    answer = stage.run(work())
    assert (answer.payload, answer.header.num_tokens) == (None, 0)
    assert answer.header.min_version is None


def test_an_engine_that_does_not_stop_in_time_fails_the_lease(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.rollout.INTERRUPT_S", 0.05)

    async def work() -> Any:
        await stage.labs[0].engine.pause()
        answer = asyncio.ensure_future(stage.first.generate(lease(deadline_s=0.01)))
        await asyncio.sleep(0.3)
        await stage.labs[0].engine.resume()
        return await answer

    failure = stage.run(work())
    assert isinstance(failure, GenerationFailure)
    assert (failure.cause, failure.retryable) == ("deadline", True)


def test_nothing_is_interrupted_that_must_not_be(stage: Stage) -> None:
    """A deterministic run, another driver, a lease that is not here."""

    async def work() -> None:
        order = lease(fence=2, is_interruptible=False)
        answer = asyncio.ensure_future(stage.first.generate(order))
        await stage.labs[0].pause_after(f"{KEY}/1", 1)
        await stage.labs[0].engine.resume()
        assert not await stage.first.interrupt(KEY, 1, 2)
        assert not await stage.first.interrupt(KEY, 1, 1)
        assert not await stage.first.interrupt(KEY, 2, 2)
        assert isinstance(await answer, GeneratedGroup)

    stage.run(work())


def test_surplus_samples_are_stopped_once_the_group_is_there_and_their_tokens_told(
    stage: Stage,
) -> None:
    order = lease(sampling=draw(6, 120, seed=2), surplus=3)
    alone = stage.run(stage.labs[0].answers(order.prompt, order.sampling))
    in_order = sorted(alone, key=lambda one: (one.tokens.size, one.index))
    answer = stage.run(stage.first.generate(order))
    group = stage.payload(answer)
    assert [c.index for c in group.completions] == [0, 1, 2]
    expected = sorted(in_order[:3], key=lambda one: one.index)
    for made, own in zip(group.completions, expected, strict=True):
        assert np.array_equal(made.tokens, own.tokens)
    assert len(answer.header.stopped) == 3
    assert min(answer.header.stopped) > 0
    assert max(answer.header.stopped) < max(one.tokens.size for one in alone)
    total = sum(answer.header.lengths) + sum(answer.header.stopped)
    assert stage.run(stage.first.status()).tokens_generated == total


def test_a_group_with_surplus_samples_can_be_interrupted_too(stage: Stage) -> None:
    order = lease(sampling=draw(5, 120, seed=2), surplus=2)
    answer = stage.run(stage.stopped(2, order))
    assert isinstance(answer, InterruptedGroup)
    whole = stage.run(stage.second.generate(replace(order, attempt=2, begun=answer.payload)))
    assert len(stage.payload(whole).completions) == 3
    assert len(whole.header.stopped) == 2
