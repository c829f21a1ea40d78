"""A tiny model of each family, and what its own library says about a sequence with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safeladder.images import PromptImage
from safeladder.records import Tokens
from tests.tiny_internvl_model import save_tiny_internvl_model
from tests.tiny_vision_model import noise, save_tiny_vision_model
from vision.family import VisionFamily, family_of, look
from vision.sequences import model_class

SAVE = {"qwen2_5_vl": save_tiny_vision_model, "internvl": save_tiny_internvl_model}


@pytest.fixture(scope="session", params=SAVE)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def family(model_path: Path) -> VisionFamily:
    found = family_of(model_path)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def model(model_path: Path) -> Any:
    return model_class(model_path).from_pretrained(model_path).float().eval()


def shown(family: VisionFamily, *seeds: int) -> tuple[PromptImage, ...]:
    """Images of different sizes."""
    sizes = [(130, 90), (60, 200), (84, 84)]
    return look(family, [noise(seed, sizes[seed % 3]) for seed in seeds])


def plain_logprobs(
    family: VisionFamily, model: Any, prompt: Tokens, answer: Tokens, images: Any
) -> torch.Tensor:
    """[T] of an answer by one pass of the model's own ``forward`` over everything it is given."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    is_image = (ids == family.image_token_id).int()
    is_image[:, prompt.size :] = 0
    inputs = family.tensors(images) if images else {}
    if model.config.model_type == "qwen2_5_vl":
        model.model.rope_deltas = None
        inputs["mm_token_type_ids"] = is_image
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0].float()
    targets = ids[0, prompt.size :]
    return torch.log_softmax(logits[prompt.size - 1 : -1], -1).gather(1, targets[:, None])[:, 0]
