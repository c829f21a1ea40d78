"""The reference scorer against plain forward passes, and the role around it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.reference import (
    ReferenceActor,
    ReferenceFailure,
    ReferenceScored,
    TransformersScorer,
    batches_under,
)
from safeladder.records import Completion, GroupKey, RolloutGroup

from .conftest import DictStore, ask, plain_logprobs, tiny_model, tiny_tokenizer

KEY = GroupKey(0, 0)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def scorer(model_path: Path, runner: asyncio.Runner) -> Iterator[TransformersScorer]:
    scorer = TransformersScorer(model_path, batch_tokens=64)
    runner.run(scorer.start())
    yield scorer
    runner.run(scorer.close())


def completions(lengths: list[tuple[int, int]]) -> list[Completion]:
    """Of (prompt, answer) lengths; the prompts of one length are one prompt."""
    rng = np.random.default_rng(1)
    prompts = {p: rng.integers(3, 250, p).astype(np.int32) for p, _ in lengths}
    return [
        Completion(
            index=k, prompt_tokens=prompts[p],
            tokens=rng.integers(3, 250, t).astype(np.int32),
            behavior_logprobs=np.zeros(t, np.float32), token_versions=np.zeros(t, np.int32),
            text="", finish_reason="length",
        )
        for k, (p, t) in enumerate(lengths)
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompts_and_padded_batches_give_the_logprobs_of_single_plain_passes(
    scorer: TransformersScorer, runner: asyncio.Runner, temperature: float
) -> None:
    samples = completions([(5, 20), (30, 3), (5, 1), (1, 1), (12, 40), (5, 8), (5, 30), (70, 30)])
    pairs = [(c.prompt_tokens, c.tokens) for c in samples]
    found = runner.run(scorer.logprobs(pairs, temperature))
    model = tiny_model(tiny_tokenizer())
    for completion, logprobs in zip(samples, found, strict=True):
        assert logprobs.shape == completion.tokens.shape
        assert logprobs.dtype == np.float32
        plain = plain_logprobs(model, completion, temperature).numpy()
        assert np.abs(logprobs - plain).max() < 1e-4


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_batches_hold_every_sequence_once_and_keep_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = batches_under(lengths, budget)
    assert sorted(k for batch in batches for k in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[k] for k in batch) <= budget


def test_a_group_is_priced_into_the_store_in_order_of_its_completions(
    scorer: TransformersScorer, runner: asyncio.Runner
) -> None:
    async def work() -> tuple[Any, Any]:
        store = DictStore()
        actor = ReferenceActor("reference-0", scorer, store, temperature=1.0)
        samples = tuple(completions([(4, 9), (4, 2)]))
        group = RolloutGroup(key=KEY, attempt=2, fence=1, prompt=ask("x"), completions=samples)
        result = await actor.score(await store.put(group), KEY, 2)
        assert isinstance(result, ReferenceScored)
        assert (result.key, result.attempt) == (KEY, 2)
        return await store.get(result.payload), await actor.status()

    logprobs, status = runner.run(work())
    assert [part.size for part in logprobs] == [9, 2]
    assert (status.groups_scored, status.groups_in_flight) == (1, 0)


def test_a_lost_payload_and_a_scorer_that_raises_are_data(runner: asyncio.Runner) -> None:
    class BrokenScorer:
        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def logprobs(self, sequences: Any, *_: Any) -> list[Any]:
            raise MemoryError("too large")

    async def work() -> list[ReferenceScored | ReferenceFailure]:
        store = DictStore()
        actor = ReferenceActor("reference-0", BrokenScorer(), store, temperature=1.0)
        group = RolloutGroup(key=KEY, attempt=1, fence=1, prompt=ask("x"), completions=())
        return [await actor.score(7, KEY, 1), await actor.score(await store.put(group), KEY, 1)]

    lost, broken = runner.run(work())
    assert isinstance(lost, ReferenceFailure)
    assert lost.cause == "payload_lost"
    assert isinstance(broken, ReferenceFailure)
    assert (broken.cause, broken.detail) == ("scorer_error", "MemoryError: too large")
