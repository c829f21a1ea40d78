"""Engine, rollout role, reference and verifier, with prompts that have images."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.reference import ReferenceActor, ReferenceScored, TransformersScorer
from actors.rendering import PromptRenderer
from actors.rollout import GeneratedGroup, RolloutActor
from actors.transformers_engine import TransformersEngine
from actors.verifier import VerifierActor
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.partials import PartialCompletion
from safeladder.ports import PromptTooLongError
from safeladder.records import (
    GenerationFailure,
    GroupKey,
    Lease,
    Message,
    Prompt,
    RolloutGroup,
    Sampling,
    ScoreRequest,
    Verdict,
    VerdictStatus,
)
from tests.actors.conftest import DictStore
from tests.tiny_model import save_tiny_model
from tests.tiny_vision_model import noise
from tests.vision.conftest import plain_logprobs
from vision.family import VisionFamily
from vision.reading import BadImageError

ROLLOUT = RolloutConfig(engine="transformers", max_prompt_tokens=400, max_new_tokens=16)


def prompt_with(folder: Path, *seeds: int, text: str = "What is here?") -> Prompt:
    paths = []
    for seed in seeds:
        path = folder / f"{seed}.png"
        path.write_bytes(noise(seed, [(130, 90), (60, 200), (84, 84)][seed % 3]))
        paths.append(str(path))
    return Prompt(id="p", messages=(Message("user", text),), route="any", images=tuple(paths))


def lease_of(prompt: Prompt, samples: int = 3) -> Lease:
    sampling = Sampling(num_samples=samples, max_new_tokens=8, temperature=1.0, seed=11)
    return Lease(
        key=GroupKey(0, 0), attempt=1, fence=1, prompt=prompt, sampling=sampling, deadline_s=60
    )


async def generated(path: Path, lease: Lease) -> Any:
    """The answer of a role, and the store with its payload."""
    store = DictStore()
    engine = TransformersEngine(ModelConfig(path=path, dtype="float32"), ROLLOUT, seed=1)
    actor = RolloutActor("engine", engine, store)
    await actor.start()
    answer = await actor.generate(lease)
    await actor.close()
    return answer, store


def group_of(path: Path, prompt: Prompt) -> RolloutGroup:
    answer, store = asyncio.run(generated(path, lease_of(prompt)))
    assert isinstance(answer, GeneratedGroup), answer
    return asyncio.run(store.get(answer.payload))


def test_log_probs_of_sampled_answers_are_those_of_the_plain_model(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    group = group_of(model_path, prompt_with(tmp_path, 0, 1))
    assert len(group.images) == 2
    for one in group.completions:
        found = torch.from_numpy(one.behavior_logprobs)
        plain = plain_logprobs(family, model, one.prompt_tokens, one.tokens, group.images)
        torch.testing.assert_close(found, plain, atol=2e-5, rtol=1e-5)


def test_another_image_gives_other_log_probs(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    group = group_of(model_path, prompt_with(tmp_path, 0, 1))
    one = group.completions[0]
    from tests.vision.conftest import shown

    others = (group.images[0], *shown(family, 4))
    assert others[1].pixels.shape == group.images[1].pixels.shape
    swapped = plain_logprobs(family, model, one.prompt_tokens, one.tokens, others)
    assert (torch.from_numpy(one.behavior_logprobs) - swapped).abs().max() > 1e-3


def test_a_continued_sample_is_priced_like_one_that_was_never_interrupted(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    prompt = prompt_with(tmp_path, 0, 1)

    async def go_on() -> Any:
        engine = TransformersEngine(ModelConfig(path=model_path, dtype="float32"), ROLLOUT, 1)
        await engine.start()
        images = await engine.look(prompt)
        begun = PartialCompletion.all_of(lease_of(prompt, 1).sampling)[0].and_then(
            np.array([40, 41], np.int32), np.array([-1, -1], np.float32), np.zeros(2, np.int32)
        )
        sampling = lease_of(prompt, 1).sampling
        found = [c async for c in engine.generate("r", prompt, sampling, [begun], images)]
        await engine.close()
        return found[0], images

    whole, images = asyncio.run(go_on())
    plain = plain_logprobs(family, model, whole.prompt_tokens, whole.tokens, images)
    found = torch.from_numpy(whole.behavior_logprobs)[2:]
    torch.testing.assert_close(found, plain[2:], atol=2e-5, rtol=1e-5)


def test_the_reference_prices_like_the_plain_model(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    answer, store = asyncio.run(generated(model_path, lease_of(prompt_with(tmp_path, 0, 1))))
    actor = ReferenceActor("r", TransformersScorer(model_path, batch_tokens=200), store, 1.0)

    async def score() -> Any:
        await actor.start()
        scored = await actor.score(answer.payload, GroupKey(0, 0), 1)
        assert isinstance(scored, ReferenceScored), scored
        await actor.close()
        return await store.get(answer.payload), await store.get(scored.payload)

    group, priced = asyncio.run(score())
    for one, logprobs in zip(group.completions, priced, strict=True):
        plain = plain_logprobs(family, model, one.prompt_tokens, one.tokens, group.images)
        torch.testing.assert_close(torch.from_numpy(logprobs), plain, atol=2e-5, rtol=1e-5)


def test_images_stand_where_the_text_says_so(
    model_path: Path, family: VisionFamily, tmp_path: Path
) -> None:
    renderer = PromptRenderer.from_config(ModelConfig(path=model_path))
    prompt = prompt_with(tmp_path, 0, 1, text="First <image> and then <image>, which?")
    images = renderer.look(prompt)
    tokens = renderer.render(prompt, images=images)
    places = np.flatnonzero(tokens == family.image_token_id)
    assert len(places) == sum(family.num_tokens(image.pixels) for image in images)
    between = renderer.decode(tokens[places[family.num_tokens(images[0].pixels) - 1] + 1 :])
    assert between.lstrip("\n").startswith(" and then ")
    with pytest.raises(BadImageError, match="1 times <image>, for 2 images"):
        renderer.render(prompt_with(tmp_path, 0, 1, text="One <image>"), images=images)


def test_the_limit_of_a_prompt_counts_the_tokens_of_its_images(
    model_path: Path, tmp_path: Path
) -> None:
    renderer = PromptRenderer.from_config(ModelConfig(path=model_path))
    plain, seeing = prompt_with(tmp_path), prompt_with(tmp_path, 0, 1)
    limit = renderer.render(plain).size + 5
    renderer.render(plain, limit)
    with pytest.raises(PromptTooLongError, match=f"the limit is {limit}"):
        renderer.render(seeing, limit, renderer.look(seeing))


@pytest.mark.parametrize("content", [None, b"no image", noise(1)[:-400]])
def test_an_image_that_cannot_be_read_fails_its_group_for_good(
    content: bytes | None, model_path: Path, tmp_path: Path
) -> None:
    prompt = prompt_with(tmp_path, 0)
    path = tmp_path / "0.png"
    path.unlink() if content is None else path.write_bytes(content)
    answer, _ = asyncio.run(generated(model_path, lease_of(prompt)))
    assert isinstance(answer, GenerationFailure)
    assert (answer.cause, answer.retryable) == ("image_unreadable", False)


def test_a_text_model_refuses_a_prompt_with_images(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "model")
    answer, _ = asyncio.run(generated(path, lease_of(prompt_with(tmp_path, 0))))
    assert isinstance(answer, GenerationFailure)
    assert answer.cause == "image_unreadable"
    assert "the model reads text only" in answer.detail


class Onlooker:
    """A verifier that remembers what it was shown."""

    name, version = "onlooker", "1"

    def __init__(self) -> None:
        self.seen: list[ScoreRequest] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def score(self, requests: Any) -> list[Verdict]:
        self.seen += requests
        return [
            Verdict(
                sample_id=r.sample_id, principle="p", verifier="onlooker", verifier_version="1",
                status=VerdictStatus.OK, score=1.0,
            )
            for r in requests
        ]  # fmt: skip


def test_verifiers_are_shown_the_files_that_the_policy_saw_once_for_all_siblings(
    model_path: Path, tmp_path: Path
) -> None:
    prompt = prompt_with(tmp_path, 0, 1, text="<image> or <image>?")
    files = tuple(Path(path).read_bytes() for path in prompt.images)
    answer, store = asyncio.run(generated(model_path, lease_of(prompt)))
    for path in prompt.images:
        Path(path).write_bytes(noise(9))  # whoever reads it again sees another one
    verifier = Onlooker()
    actor = VerifierActor("v", "p", verifier, store, timeout_s=5)
    asyncio.run(actor.score(answer.payload, GroupKey(0, 0), 1))
    assert [r.images for r in verifier.seen] == [files] * 3
    assert len({id(r.images[0]) for r in verifier.seen}) == 1
    assert verifier.seen[0].question == " or ?"
