"""Interrupted and continued samples: one contract, two engines, and one of each kind in a row."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rendering import PromptRenderer
from safeladder.partials import PartialCompletion
from safeladder.records import Completion

from .conftest import (
    EXACT,
    LONG,
    Laboratory,
    ask,
    assert_versions_change_exactly_at,
    draw,
    error,
    laboratory,
)


@pytest.fixture(scope="module")
def other_lab(model_path: Path) -> Iterator[Laboratory]:
    """A second engine, fresh from the base model."""
    yield from laboratory("transformers", model_path, "keep")


def open_partials(samples: list[Any]) -> list[PartialCompletion]:
    return [one for one in samples if isinstance(one, PartialCompletion)]


def assert_continued(
    before: list[PartialCompletion], after: list[Completion], old: Laboratory, new: Laboratory
) -> None:
    """The first tokens are untouched, the others are the new engine's, under its version."""
    assert [one.index for one in after] == [one.index for one in before]
    for partial, completion in zip(before, after, strict=True):
        k = partial.tokens.size
        assert completion.tokens.size > k
        assert completion.tokens[:k].tolist() == partial.tokens.tolist()
        assert completion.behavior_logprobs[:k].tolist() == partial.behavior_logprobs.tolist()
        assert completion.token_versions[:k].tolist() == partial.token_versions.tolist()
        assert set(completion.token_versions[k:].tolist()) == {new.version}
        assert error(new, completion, new.version)[k:].max() < EXACT
        if k:
            (version,) = set(partial.token_versions.tolist())
            assert error(old, completion, version)[:k].max() < EXACT


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_an_interrupted_request_yields_every_token_that_it_has(
    lab: Laboratory, num_tokens: int
) -> None:
    samples, counts = lab.run(lab.interrupted(ask(LONG), draw(4, 80, seed=20), num_tokens))
    assert [one.index for one in samples] == [0, 1, 2, 3]
    assert tuple(one.tokens.size for one in samples) == counts
    assert open_partials(samples)
    for one in open_partials(samples):
        assert one.behavior_logprobs.shape == one.token_versions.shape == one.tokens.shape
        assert one.tokens.size < 80
    assert not lab.is_in_flight("interrupted")


@pytest.mark.parametrize("direction", ["from", "to"])
def test_a_sample_goes_on_in_another_engine_under_a_newer_version(
    lab: Laboratory, other_lab: Laboratory, direction: str, model_path: Path
) -> None:
    old, new = (lab, other_lab) if direction == "from" else (other_lab, lab)
    lab_version = old.version
    new.run(new.catch_up(lab_version + 1))
    samples, _ = old.run(old.interrupted(ask(LONG), draw(4, 40, seed=30), 6))
    before = open_partials(samples)
    after = new.run(new.answers(ask(LONG), draw(4, 40), begun=before))
    assert_continued(before, after, old, new)
    renderer = PromptRenderer(model_path)
    for completion in after:
        assert completion.prompt_tokens.tolist() == renderer.render(ask(LONG)).tolist()
        assert completion.text == renderer.decode(completion.tokens)
        if completion.finish_reason == "length":
            assert completion.tokens.size == 40
        else:
            assert completion.tokens[-1] in renderer.stop_ids
    assert {c.finish_reason for c in after} <= {"stop", "length"}


async def update_beside_another_request(lab: Laboratory) -> None:
    """With nothing in flight vLLM would empty its prefix cache at an update."""
    other = asyncio.ensure_future(lab.answers(ask("something else"), draw(3, 150), "other"))
    await lab.pause_after("other", 1)
    await lab.engine.load(*lab.prepare())
    await lab.engine.resume()
    await other


def test_an_engine_that_has_new_weights_continues_without_the_keys_of_the_old_ones(
    lab: Laboratory,
) -> None:
    """Prompt and tokens are in this very engine's prefix cache, made by the old weights."""

    async def work() -> None:
        samples, _ = await lab.interrupted(ask(LONG), draw(3, 120, seed=40), 40)
        await update_beside_another_request(lab)
        after = await lab.answers(ask(LONG), draw(3, 120), begun=open_partials(samples))
        assert_continued(open_partials(samples), after, lab, lab)

    lab.run(work())


@pytest.mark.parametrize("lab", [pytest.param("vllm", marks=pytest.mark.engine)], indirect=True)
@pytest.mark.parametrize("is_salted", [True, False])
def test_the_salt_of_a_continued_request_is_the_served_version(
    lab: Laboratory, is_salted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with the salt of the old one the old keys do come back."""
    asked: list[Any] = []
    add_request = lab.engine._engine.add_request

    async def spy(name: str, prompt: Any, params: Any) -> Any:
        asked.append(prompt)
        return await add_request(name, prompt, params)

    async def work() -> None:
        samples, _ = await lab.interrupted(ask(LONG), draw(1, 120, seed=41), 50)
        (begun,) = open_partials(samples)
        old_salt = lab.engine._salt
        await update_beside_another_request(lab)
        if not is_salted:
            monkeypatch.setattr(lab.engine, "_salt", old_salt)
        monkeypatch.setattr(lab.engine._engine, "add_request", spy)
        (after,) = await lab.answers(ask(LONG), draw(1, 120), begun=[begun])
        (prompt,) = asked
        assert prompt["prompt_token_ids"] == [*after.prompt_tokens, *begun.tokens]
        wrong = error(lab, after, lab.version)[begun.tokens.size :].max()
        if is_salted:
            assert prompt["cache_salt"].startswith(f"{lab.version}-")
            assert wrong < EXACT
        else:
            assert wrong > 100 * EXACT

    try:
        lab.run(work())
    finally:
        monkeypatch.undo()


def test_interrupted_or_not_a_greedy_answer_is_the_same(lab: Laboratory) -> None:
    greedy = draw(1, 40, temperature=0.0)
    prompts = [ask(text) for text in (LONG, "hello", "something else", "why", "one two three")]
    answers = [lab.run(lab.answers(prompt, greedy))[0] for prompt in prompts]
    whole, prompt = max(zip(answers, prompts, strict=True), key=lambda pair: pair[0].tokens.size)
    assert whole.tokens.size > 10
    samples, _ = lab.run(lab.interrupted(prompt, greedy, 3))
    (continued,) = lab.run(lab.answers(prompt, greedy, begun=open_partials(samples)))
    assert continued.tokens.tolist() == whole.tokens.tolist()
    assert continued.finish_reason == whole.finish_reason
    assert np.abs(continued.behavior_logprobs - whole.behavior_logprobs).max() < EXACT


def test_samples_of_unequal_length_and_new_ones_go_on_together(lab: Laboratory) -> None:
    first, _ = lab.run(lab.interrupted(ask(LONG), draw(1, 60, seed=50), 3))
    second, _ = lab.run(lab.interrupted(ask(LONG), draw(1, 60, seed=51), 9))
    before = [
        PartialCompletion.empty(0),
        *(replace(one, index=k) for k, one in enumerate([*first, *second], start=1)),
    ]
    assert len({one.tokens.size for one in before}) == 3
    after = lab.run(lab.answers(ask(LONG), draw(3, 60), begun=before))
    assert_continued(before, after, lab, lab)


def test_an_update_in_flight_reaches_a_continued_sample_at_the_exact_token(lab: Laboratory) -> None:
    async def work() -> None:
        samples, _ = await lab.interrupted(ask(LONG), draw(2, 150, seed=60), 5)
        before = open_partials(samples)
        old = lab.version
        request = asyncio.ensure_future(lab.answers(ask(LONG), draw(2, 150), "r", before))
        counts = await lab.pause_after("r", 12)
        await lab.engine.load(*lab.prepare())
        await lab.engine.resume()
        assert_versions_change_exactly_at(await request, counts, old)

    lab.run(work())


def test_a_continued_sample_meets_new_random_numbers(lab: Laboratory) -> None:
    """Those of its first tokens again would repeat its choices where the model is unsure."""
    samples, _ = lab.run(lab.interrupted(ask(LONG), draw(1, 60, seed=50), 3))
    (begun,) = open_partials(samples)
    sampling = draw(1, 60, seed=50)
    assert PartialCompletion.empty(2).seed(sampling) == 52
    assert begun.seed(sampling) not in (50, PartialCompletion.empty(0).seed(sampling))
    once, again = (lab.run(lab.answers(ask(LONG), sampling, begun=[begun])) for _ in range(2))
    assert once[0].tokens.tolist() == again[0].tokens.tolist()


def test_interrupting_what_is_not_there_is_no_error(lab: Laboratory) -> None:
    lab.run(lab.engine.interrupt("nobody"))


def test_what_waits_while_it_is_interrupted_is_yielded_without_a_token(lab: Laboratory) -> None:
    """vLLM runs four sequences here: the second request has none of them."""

    async def work() -> None:
        first = asyncio.ensure_future(lab.answers(ask(LONG), draw(4, 60), "first"))
        await lab.pause_after("first", 2)
        second = asyncio.ensure_future(lab.answers(ask(LONG), draw(2, 60), "second"))
        await asyncio.sleep(0.05)
        stop = asyncio.ensure_future(lab.engine.interrupt("second"))
        await asyncio.sleep(0.05)
        await lab.engine.resume()
        await stop
        assert [one.tokens.size for one in open_partials(await second)] == [0, 0]
        assert len(await first) == 4

    lab.run(work())
