"""What a family says about images agrees with the model's own library."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cluster.model_folder import read_model_folder
from cluster.resource_plan import resource_plan
from safeladder.errors import ConfigError
from tests.cluster.checked_setup import build
from tests.tiny_model import save_tiny_model
from tests.tiny_vision_model import noise, save_tiny_vision_model
from tests.vision.conftest import shown
from vision.family import VisionFamily, expand_slots, family_of, features, look
from vision.reading import BadImageError, read_image

PROCESSORS = {"qwen2_5_vl": Qwen2VLImageProcessorPil, "internvl": GotOcr2ImageProcessorPil}


def test_pixels_that_travel_become_the_tensors_of_the_models_own_processor(
    model_path: Path, family: VisionFamily, model: Any
) -> None:
    files = [noise(1, (130, 90)), noise(2, (60, 200))]
    processor = PROCESSORS[model.config.model_type].from_pretrained(model_path)
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    expected = processor(pictures, return_tensors="pt")
    found = family.tensors(look(family, files))
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_every_image_token_of_the_prompt_gets_one_feature(family: VisionFamily, model: Any) -> None:
    images = shown(family, 0, 1)
    tokens = expand_slots(family, [5, family.image_token_id, 6, family.image_token_id, 7], images)
    seen = features(family, model, images)
    assert len(seen) == (tokens == family.image_token_id).sum()
    assert not seen.requires_grad
    apart = torch.cat([features(family, model, [image]) for image in images])
    torch.testing.assert_close(seen, apart)


@pytest.mark.parametrize("seeds", [(), (0,), (1, 2), (2, 0, 1)])
def test_positions_are_those_of_the_models_own_rope_index(
    seeds: tuple[int, ...], tmp_path: Path
) -> None:
    path = save_tiny_vision_model(tmp_path)
    family = family_of(path)
    assert family is not None
    images = shown(family, *seeds)
    slots = [token for _ in seeds for token in (9, family.image_token_id, 10)]
    tokens = expand_slots(family, [5, 6, *slots, 7, 8, 5], images)
    ids = torch.from_numpy(tokens).long()[None]
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path)
    grids = family.tensors(images)["image_grid_thw"] if seeds else None
    expected, delta = model.model.get_rope_index(ids, (ids == family.image_token_id).int(), grids)
    found = family.positions(tokens, images)
    assert np.array_equal(found, expected[:, 0].numpy())
    assert found.max() + 1 - tokens.size == int(delta)


def test_a_sampled_image_token_behind_the_prompt_is_text(family: VisionFamily) -> None:
    (image,) = shown(family, 0)
    prompt = expand_slots(family, [5, family.image_token_id, 6], [image])
    longer = np.append(prompt, [family.image_token_id] * 2).astype(np.int32)
    found = family.positions(longer, [image])
    assert np.array_equal(found[:, : prompt.size], family.positions(prompt, [image]))
    last = found[:, prompt.size - 1 :]
    assert (np.diff(last, axis=1) == 1).all()


def test_a_prompt_whose_own_text_names_the_image_token_is_refused(family: VisionFamily) -> None:
    slot = family.image_token_id
    with pytest.raises(BadImageError, match="room for 2 images, and 1 are given"):
        expand_slots(family, [slot, 5, slot], shown(family, 0))


def test_limits_of_the_config_take_the_place_of_the_processors(tmp_path: Path) -> None:
    path = save_tiny_vision_model(tmp_path)
    small = family_of(path, min_pixels=784, max_pixels=5 * 784)
    assert small is not None
    (image,) = look(small, [noise(1, (300, 300))])
    assert small.num_tokens(image.pixels) == 4


def test_a_plan_counts_a_tower_as_frozen_and_as_whole_on_each_rank(
    model_path: Path, family: VisionFamily, model: Any, tmp_path: Path
) -> None:
    tower = sum(p.numel() for name in family.frozen
                for p in getattr(model.model, name).parameters())  # fmt: skip
    folder = read_model_folder(model_path)
    assert folder.num_frozen == tower
    assert folder.num_trainable(None) == folder.num_parameters - tower
    text = replace(folder, num_parameters=folder.num_parameters - tower, num_frozen=0)
    config = build(tmp_path, learner__zero_stage=3, learner__ranks=2)
    assert config.model.dtype == "float32"
    plans = ({line.role: line for line in resource_plan(config, one)} for one in (folder, text))
    whole, rest = (plan["learner"].num_bytes for plan in plans)
    assert whole - rest == 4 * tower


def test_a_text_model_sees_nothing(tmp_path: Path) -> None:
    assert family_of(save_tiny_model(tmp_path)) is None


def test_a_vision_model_without_its_processor_is_refused_by_name(tmp_path: Path) -> None:
    path = save_tiny_vision_model(tmp_path)
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no preprocessor_config\.json"):
        family_of(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"missing\.png: there is no such file"):
        read_image(str(tmp_path / "missing.png"))
