"""vLLM samples prompts with images as the learner prices them, also after new weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.vllm_engine import VllmEngine
from safeladder.config import ModelConfig, RolloutConfig, VllmConfig
from safeladder.partials import PartialCompletion
from safeladder.records import Completion, Prompt, Sampling
from tests.actors.conftest import publish
from tests.vision.conftest import plain_logprobs
from tests.vision.test_rollout import prompt_with
from vision.family import VisionFamily
from vision.sequences import model_class

pytestmark = pytest.mark.engine

ROLLOUT = RolloutConfig(
    max_prompt_tokens=256, max_new_tokens=16, vllm=VllmConfig(cpu_kv_cache_gib=0.1, max_num_seqs=8)
)
DRAW = Sampling(num_samples=3, max_new_tokens=8, temperature=1.0, seed=11)


def gap(family: VisionFamily, model: Any, one: Completion, images: Any) -> float:
    """Between what the engine says of its tokens and what the plain model says."""
    plain = plain_logprobs(family, model, one.prompt_tokens, one.tokens, images)
    return float((torch.from_numpy(one.behavior_logprobs) - plain).abs().max())


async def sampled(engine: VllmEngine, name: str, prompt: Prompt, **how: Any) -> Any:
    images = await engine.look(prompt)
    made = [one async for one in engine.generate(name, prompt, DRAW, images=images, **how)]
    return made, images


def test_log_probs_with_images_are_the_plain_models_before_and_after_new_weights(
    model_path: Path, family: VisionFamily, tmp_path: Path
) -> None:
    model = model_class(model_path).from_pretrained(model_path).float().eval()
    two, none = prompt_with(tmp_path, 0, 1), prompt_with(tmp_path)
    (tmp_path / "swapped").mkdir()
    other = prompt_with(tmp_path / "swapped", 0, 4)  # as large as the second one of `two`

    async def play() -> None:
        engine = VllmEngine(ModelConfig(path=model_path, dtype="float32"), ROLLOUT, seed=1)
        await engine.start()
        try:
            for name, prompt in (("two", two), ("none", none), ("other", other)):
                made, images = await sampled(engine, name, prompt)
                assert max(gap(family, model, one, images) for one in made) < 1e-4, name
            whole = made[0]
            begun = PartialCompletion(
                index=0, tokens=whole.tokens[:3], behavior_logprobs=whole.behavior_logprobs[:3],
                token_versions=whole.token_versions[:3],
            )  # fmt: skip
            made, images = await sampled(engine, "continued", other, begun=[begun])
            assert gap(family, model, made[0], images) < 1e-4

            frozen = tuple(f"model.{module}." for module in family.frozen)
            trained = dict(model.named_parameters())
            names = [name for name in trained if not name.startswith(frozen)]
            with torch.no_grad():
                for name in names:
                    trained[name].add_(0.05 * torch.randn_like(trained[name]))
            manifest, raw = publish(dict(model.state_dict()), names, version=1)
            await engine.pause()
            await engine.load(manifest, raw)
            await engine.resume()
            made, images = await sampled(engine, "new", two)
            assert {int(v) for one in made for v in one.token_versions} == {1}
            assert max(gap(family, model, one, images) for one in made) < 1e-4
        finally:
            await engine.close()

    asyncio.run(play())
