"""What an engine says of itself: its speed at its start, and how full it is at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.profiling import measured
from actors.rollout import RolloutActor
from actors.vllm_engine import VllmEngine
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.ports import PromptTooLongError

from .conftest import (
    DictStore,
    Laboratory,
    ask,
    draw,
    rollout_config,
    tiny_model,
    tiny_tokenizer,
)


class TimedEngine:
    """Makes ``tokens`` of each sample in ``seconds``, whatever the size of the batch."""

    served_version = 0

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[int] = []

    async def start(self) -> None: ...

    def limits(self) -> EngineProfile:
        return EngineProfile(kv_tokens=1000, max_sequences=20)

    def occupancy(self) -> EngineLoad:
        return EngineLoad(kv_share=0.25, running=1, waiting=0, preemptions=0)

    async def generate(self, _: str, __: Any, sampling: Any) -> AsyncGenerator[Any, None]:
        self.asked.append(sampling.num_samples)
        await asyncio.sleep(self.seconds)
        for _ in range(sampling.num_samples):
            yield type("Sample", (), {"tokens": np.zeros(sampling.max_new_tokens)})


def profile_of(engine: Any, limit_s: float = 60.0) -> EngineProfile:
    return asyncio.run(measured(engine, 100, limit_s=limit_s))


def test_a_speed_is_measured_at_rising_sizes_up_to_the_engines_own_limit() -> None:
    profile = profile_of(TimedEngine(0.01))
    assert [size for size, _ in profile.speeds] == [1, 4, 16, 20]
    slow, fast = profile.speeds[0][1], profile.speeds[-1][1]
    assert 0 < slow < fast, "the batch costs as much whatever its size"
    assert (profile.kv_tokens, profile.max_sequences) == (1000, 20)


def test_a_slow_engine_is_measured_in_bounded_time() -> None:
    engine = TimedEngine(0.3)
    profile = profile_of(engine, limit_s=0.7)
    assert [size for size, _ in profile.speeds] == [1]
    endless = TimedEngine(60.0)
    assert profile_of(endless, limit_s=0.05).speeds == ()


def test_an_engine_too_small_for_the_question_has_a_profile_without_speed() -> None:
    class Small(TimedEngine):
        async def generate(self, *_: Any) -> AsyncGenerator[Any, None]:
            raise PromptTooLongError("4 tokens are the most")
            yield

    assert profile_of(Small(0.0)).speeds == ()


def test_the_role_tells_its_profile_at_the_start_and_its_load_from_then_on() -> None:
    async def work() -> None:
        role = RolloutActor("rollout-0", TimedEngine(0.0), DictStore(), profile_tokens=4)  # type: ignore[arg-type]
        assert (await role.status()).profile is None
        status = await role.start()
        assert status.profile is not None
        assert status.profile.speeds
        assert status.load == EngineLoad(kv_share=0.25, running=1, waiting=0, preemptions=0)

    asyncio.run(work())


def test_without_measuring_the_profile_has_the_limits_only() -> None:
    engine = TimedEngine(0.0)
    role = RolloutActor("rollout-0", engine, DictStore())  # type: ignore[arg-type]
    status = asyncio.run(role.start())
    assert status.profile == engine.limits()
    assert engine.asked == []


def test_an_engine_at_work_says_how_many_sequences_hold_its_cache(lab: Laboratory) -> None:
    async def work() -> EngineLoad:
        request = asyncio.ensure_future(lab.answers(ask("hello"), draw(3, 40)))
        await lab.pause_after("r", 10)
        load: EngineLoad = lab.engine.occupancy()
        await lab.engine.resume()
        await request
        return load

    load = lab.run(work())
    limits = lab.engine.limits()
    assert limits.max_sequences == rollout_config().vllm.max_num_seqs
    assert 0 < load.running <= 3
    assert 30 / limits.kv_tokens <= load.kv_share < 0.1
    assert load.preemptions == 0


def test_what_exceeds_the_batch_waits(lab: Laboratory) -> None:
    async def work() -> EngineLoad:
        request = asyncio.ensure_future(lab.answers(ask("hello"), draw(6, 40)))
        await lab.pause_after("r", 2)
        load: EngineLoad = lab.engine.occupancy()
        await lab.engine.resume()
        await request
        return load

    load = lab.run(work())
    assert load.running <= 4
    assert load.waiting >= 1


def test_a_real_engine_measures_itself(lab: Laboratory) -> None:
    profile = lab.run(measured(lab.engine, 8, limit_s=30.0))
    assert [size for size, _ in profile.speeds] == [1, 4]
    assert all(speed > 0 for _, speed in profile.speeds)


@pytest.fixture
def small_cache(model_path: Path) -> Iterator[Laboratory]:
    """A vLLM whose cache holds 1,024 tokens."""
    config = RolloutConfig(
        max_prompt_tokens=80,
        max_new_tokens=400,
        kv_on_update="recompute",
        vllm=VllmConfig(cpu_kv_cache_gib=1024 * 2 * 3 * 2 * 16 * 4 / 2**30, max_num_seqs=8),
    )
    engine = VllmEngine(ModelConfig(path=model_path, dtype="float32"), config, seed=0)
    with asyncio.Runner() as runner:
        lab = Laboratory(engine, runner, {0: tiny_model(tiny_tokenizer())})
        lab.run(engine.start(), timeout=180)
        try:
            yield lab
        finally:
            lab.run(engine.close())


@pytest.mark.engine
def test_preemptions_count_but_for_those_of_a_weight_update(small_cache: Laboratory) -> None:
    lab = small_cache
    kv_tokens = lab.engine.limits().kv_tokens

    async def update() -> EngineLoad:
        request = asyncio.ensure_future(lab.answers(ask("hello"), draw(2, 60)))
        await lab.pause_after("r", 5)
        manifest, raw = lab.prepare()
        await lab.engine.load(manifest, raw)
        await lab.engine.resume()
        await request
        load: EngineLoad = lab.engine.occupancy()
        return load

    async def crowd() -> EngineLoad:
        await lab.answers(ask("hello"), draw(8, 380))
        load: EngineLoad = lab.engine.occupancy()
        return load

    assert kv_tokens < 8 * 380
    assert lab.run(update()).preemptions == 0
    assert lab.run(crowd()).preemptions > 0
