"""One contract, two engines. Log-probs and versions are checked against plain forward passes of
plain models, which share no code with either engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.rendering import PromptRenderer
from actors.rollout import EngineFailedError, RolloutActor
from actors.transformers_engine import TransformersEngine
from actors.weight_intake import WeightIntake
from learners.publication import Publisher
from safeladder.ports import PromptTooLongError
from safeladder.records import Completion, WeightManifest

from .conftest import (
    ENGINES,
    EXACT,
    LONG,
    DictStore,
    Laboratory,
    PublishedPolicy,
    ask,
    assert_versions_change_exactly_at,
    draw,
    error,
    laboratory,
)


@pytest.fixture(scope="module", params=ENGINES)
def recomputing_lab(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Laboratory]:
    yield from laboratory(request.param, model_path, "recompute")


def is_last_layer(name: str) -> bool:
    return name.startswith("model.layers.2.") or name == "model.norm.weight"


def update_in_flight(lab: Laboratory, num_tokens: int) -> tuple[list[Completion], tuple[int, ...]]:
    """Completions of a request that saw a new version after so many tokens, and their counts at
    that moment."""

    async def work() -> tuple[list[Completion], tuple[int, ...]]:
        manifest, raw = lab.prepare()
        request = asyncio.ensure_future(lab.answers(ask(LONG), draw(3, 80), "r"))
        counts = await lab.pause_after("r", num_tokens)
        await lab.engine.load(manifest, raw)
        await lab.engine.resume()
        return await request, counts

    result: tuple[list[Completion], tuple[int, ...]] = lab.run(work())
    return result


def test_every_sample_is_streamed_with_its_tokens_versions_and_text(
    lab: Laboratory, model_path: Path
) -> None:
    prompt = ask("hello")
    completions = lab.run(lab.answers(prompt, draw(3, 8)))
    renderer = PromptRenderer(model_path)
    assert [c.index for c in completions] == [0, 1, 2]
    for completion in completions:
        assert completion.prompt_tokens.tolist() == renderer.render(prompt).tolist()
        assert set(completion.token_versions.tolist()) == {lab.version}
        assert completion.text == renderer.decode(completion.tokens)
    assert len({tuple(c.tokens.tolist()) for c in completions}) == 3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behavior_logprobs_are_those_of_a_plain_forward_pass(
    lab: Laboratory, temperature: float
) -> None:
    for completion in lab.run(lab.answers(ask("hello"), draw(3, 24, temperature))):
        assert error(lab, completion, lab.version, temperature).max() < EXACT


def test_the_same_seed_gives_the_same_answers_whatever_else_runs(lab: Laboratory) -> None:
    async def work() -> tuple[list[Completion], list[Completion]]:
        alone = await lab.answers(ask("hello"), draw(2, 16, seed=3))
        among, _ = await asyncio.gather(
            lab.answers(ask("hello"), draw(2, 16, seed=3), "a"),
            lab.answers(ask("something else"), draw(2, 30, seed=4), "b"),
        )
        return alone, among

    alone, among = lab.run(work())
    for one, other in zip(alone, among, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_greedy_takes_the_likeliest_token_and_prices_it_at_temperature_one(
    lab: Laboratory,
) -> None:
    (completion,) = lab.run(lab.answers(ask("hello"), draw(1, 16, temperature=0.0)))
    model = lab.oracle(lab.version)
    ids = torch.tensor([[*completion.prompt_tokens.tolist(), *completion.tokens.tolist()]])
    likeliest = model(input_ids=ids).logits[0].argmax(-1)[completion.prompt_tokens.size - 1 : -1]
    assert completion.tokens.tolist() == likeliest.tolist()
    assert error(lab, completion, lab.version).max() < EXACT


def test_an_answer_ends_at_its_length_or_with_a_sampled_stop_token(
    lab: Laboratory, model_path: Path
) -> None:
    (stop,) = PromptRenderer(model_path).stop_ids
    completions = [
        c for k in range(3) for c in lab.run(lab.answers(ask("hello"), draw(8, 50, seed=8 * k)))
    ]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        is_stop = completion.tokens == stop
        if completion.finish_reason == "stop":
            assert is_stop[-1]
            assert is_stop.sum() == 1
        else:
            assert completion.tokens.size == 50
            assert not is_stop.any()


def test_a_prompt_above_the_limit_is_refused(lab: Laboratory) -> None:
    with pytest.raises(PromptTooLongError, match=r"the limit is 80"):
        lab.run(lab.answers(ask("x" * 80), draw()))


def test_an_update_in_flight_loses_no_request_and_versions_change_at_the_exact_token(
    lab: Laboratory,
) -> None:
    old = lab.version
    completions, counts = update_in_flight(lab, num_tokens=5)
    if isinstance(lab.engine, TransformersEngine):
        assert counts == (5, 5, 5)
    assert_versions_change_exactly_at(completions, counts, old)
    assert any(c.tokens.size > n for c, n in zip(completions, counts, strict=True))
    for completion, count in zip(completions, counts, strict=True):
        assert error(lab, completion, old)[:count].max() < EXACT


def test_with_keep_later_tokens_still_see_the_keys_of_the_old_weights(lab: Laboratory) -> None:
    old = lab.version
    completions, counts = update_in_flight(lab, num_tokens=5)
    later = [
        error(lab, completion, old + 1)[count:]
        for completion, count in zip(completions, counts, strict=True)
    ]
    assert np.concatenate(later).max() > 100 * EXACT


def test_with_recompute_tokens_before_and_after_match_the_old_and_the_new_weights(
    recomputing_lab: Laboratory,
) -> None:
    lab = recomputing_lab
    for num_tokens in (1, 5):
        old = lab.version
        completions, counts = update_in_flight(lab, num_tokens)
        assert_versions_change_exactly_at(completions, counts, old)
        assert any(c.tokens.size > n for c, n in zip(completions, counts, strict=True))
        for completion, count in zip(completions, counts, strict=True):
            assert error(lab, completion, old)[:count].max(initial=0) < EXACT
            assert error(lab, completion, old + 1)[count:].max(initial=0) < EXACT


def test_a_sample_without_a_token_at_the_update_belongs_wholly_to_the_new_version(
    lab: Laboratory,
) -> None:
    """vLLM runs four sequences here, so the others wait; their prompt is in its cache, made by
    the old weights, and must not be used."""

    async def work() -> list[Completion]:
        manifest, raw = lab.prepare()
        first = asyncio.ensure_future(lab.answers(ask(LONG), draw(4, 80), "first"))
        await lab.pause_after("first", 3)
        second = asyncio.ensure_future(lab.answers(ask(LONG), draw(4, 20), "second"))
        await asyncio.sleep(0.05)
        await lab.engine.load(manifest, raw)
        await lab.engine.resume()
        await first
        return await second

    for completion in lab.run(work()):
        assert set(completion.token_versions.tolist()) == {lab.version}
        assert error(lab, completion, lab.version).max() < EXACT


@pytest.mark.parametrize("part", ["last layer", "everything"])
def test_a_version_may_hold_any_part_of_the_tensors(lab: Laboratory, part: str) -> None:
    old = lab.version
    manifest, raw = lab.prepare(is_last_layer if part == "last layer" else lambda name: True)
    lab.run(lab.update(manifest, raw))
    assert lab.version == old + 1
    for completion in lab.run(lab.answers(ask("hello"), draw(2, 16))):
        assert error(lab, completion, old + 1).max() < EXACT
        assert error(lab, completion, old).max() > 100 * EXACT


def test_a_corrupted_tensor_is_refused_and_the_old_version_served_on(lab: Laboratory) -> None:
    old = lab.version
    manifest, raw = lab.prepare(is_last_layer)
    name = manifest.tensors[-1].name
    raw[name] = raw[name].copy()
    raw[name][3] ^= 1
    store = DictStore()
    payload = lab.run(store.put_weights(raw))
    actor = RolloutActor("rollout-0", lab.engine, store)
    status = lab.run(actor.load_weights(manifest, payload))
    assert status.failure.startswith(f"ChecksumError: {name}")
    assert (lab.version, status.is_dead) == (old, False)
    for completion in lab.run(lab.answers(ask("hello"), draw(2, 16))):
        assert set(completion.token_versions.tolist()) == {old}
        assert error(lab, completion, old).max() < EXACT


def test_a_chain_of_deltas_is_served_like_whole_versions(lab: Laboratory) -> None:
    store = DictStore()
    publisher = Publisher(store, 20_000, delta=True)
    actor = RolloutActor("rollout-0", lab.engine, store, intake=WeightIntake(store, delta=True))
    with ThreadPoolExecutor(1) as thread:
        for is_delta in (False, True, True):
            lab.prepare(share=0.02)
            policy: Any = PublishedPolicy(lab.oracle(lab.version + 1))
            manifest, payload = lab.run(publisher.publish(policy, thread, lab.version + 1, 1))
            assert (payload.delta is not None) == is_delta
            if is_delta:  # the engine can do without the whole version
                payload = replace(payload, chunks=())
            assert lab.run(actor.load_weights(manifest, payload)).has_loaded(manifest)
    for completion in lab.run(lab.answers(ask("hello"), draw(2, 16))):
        assert error(lab, completion, lab.version).max() < EXACT
        assert error(lab, completion, lab.version - 1).max() > 10 * EXACT


def test_a_version_that_does_not_fit_the_model_is_refused_and_the_old_one_served_on(
    lab: Laboratory,
) -> None:
    old = lab.version
    manifest, raw = lab.prepare(is_last_layer)
    if isinstance(lab.engine, TransformersEngine):
        manifest, raw = lab.prepare(lambda name: name == "model.norm.weight")
        odd = manifest.tensors[0]
        spec = type(odd)(
            name="model.nothing", dtype=odd.dtype, shape=odd.shape, checksum=odd.checksum
        )
        manifest = type(manifest)(version=old + 1, fence=1, tensors=(spec,))
        raw = {"model.nothing": raw["model.norm.weight"]}
    else:  # one part of a module that vLLM fuses with others
        manifest, raw = lab.prepare(lambda name: name.endswith("2.self_attn.q_proj.weight"))
    with pytest.raises(ValueError, match=r"model\.nothing|k_proj"):
        lab.run(lab.update(manifest, raw))
    assert lab.version == old
    for completion in lab.run(lab.answers(ask("hello"), draw(2, 16))):
        assert error(lab, completion, old).max() < EXACT


def test_closing_the_iterator_frees_the_engine(lab: Laboratory) -> None:
    async def work() -> None:
        stream = lab.engine.generate("r", ask("hello"), draw(4, 200))
        first = asyncio.ensure_future(anext(stream))
        await lab.pause_after("r", 2)
        await lab.engine.resume()
        first.cancel()
        await asyncio.wait({first})
        await stream.aclose()
        assert not lab.is_in_flight("r")
        assert len(await lab.answers(ask("hello"), draw(4, 8), "r")) == 4

    lab.run(work())


def test_loading_needs_a_pause(lab: Laboratory) -> None:
    manifest, raw = lab.prepare()
    with pytest.raises(RuntimeError, match="paused"):
        lab.run(lab.engine.load(manifest, raw))


@pytest.fixture
def vllm_lab(model_path: Path) -> Iterator[Laboratory]:
    """An engine that may be spent by its test."""
    yield from laboratory("vllm", model_path, "keep")


async def load_damaged(lab: Laboratory, manifest: WeightManifest, damaged: Any) -> Any:
    """What a request in flight and the load itself come to."""
    request = asyncio.ensure_future(lab.answers(ask(LONG), draw(3, 80), "r"))
    await lab.pause_after("r", 2)
    loading = await asyncio.gather(lab.engine.load(manifest, damaged), return_exceptions=True)
    with contextlib.suppress(EngineFailedError):
        await lab.engine.resume()
    return *loading, *await asyncio.gather(request, return_exceptions=True)


@pytest.mark.engine
def test_what_vllm_reads_is_verified_again_and_a_mixture_is_never_served(
    vllm_lab: Laboratory,
) -> None:
    """Only damage on the way from this process to vLLM's can be found there. In the first chunk
    nothing has been touched yet; later the engine is spent, and all in flight hear of it."""
    lab = vllm_lab
    manifest, raw = lab.prepare()
    first, last = manifest.tensors[0].name, manifest.tensors[-1].name
    loading, answers = lab.run(load_damaged(lab, manifest, {**raw, first: raw[first] ^ 1}))
    assert isinstance(loading, ValueError)
    assert f"{first} of version 1 has checksum" in str(loading)
    assert {int(v) for completion in answers for v in completion.token_versions} == {0}
    lab.run(lab.update(manifest, raw))
    assert lab.version == 1
    manifest, raw = lab.prepare()
    loading, answers = lab.run(load_damaged(lab, manifest, {**raw, last: raw[last] ^ 1}))
    assert isinstance(loading, EngineFailedError)
    assert "loaded half-way" in str(loading)
    assert isinstance(answers, EngineFailedError)
