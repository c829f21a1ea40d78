"""Packed rows with images: each sequence is priced as the plain model prices it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners import vision_tower
from learners.batch_images import image_metrics
from learners.batches import build_samples, read_batch, write_batch
from learners.packing import PackedRow, pack
from learners.policy_model import PackedPolicy, load_policy
from safeladder.images import PromptImage
from safeladder.records import (
    Completion,
    GroupKey,
    Message,
    Prompt,
    RolloutGroup,
    TrainGroup,
    TrainingSample,
    TrainOrder,
)
from tests.vision.conftest import plain_logprobs, shown
from vision.family import VisionFamily, expand_slots


@pytest.fixture(scope="module")
def policy(model_path: Path) -> PackedPolicy:
    return load_policy(
        model_path, dtype=torch.float32, temperature=1.0, train_last_layers=None,
        gradient_checkpointing=False,
    )  # fmt: skip


def samples_of(
    family: VisionFamily, group: int, seeds: tuple[int, ...], lengths: tuple[int, ...]
) -> list[TrainingSample]:
    """Siblings with one prompt that shows some images, in the middle of its text."""
    random = np.random.default_rng(group)
    images = shown(family, *seeds)
    slots = [token for _ in seeds for token in (family.image_token_id, 9)]
    prompt = expand_slots(family, [5, 6, *slots, 7, 8], images)

    def sample(k: int, length: int) -> TrainingSample:
        return TrainingSample(
            sample_id=f"0/{group}/{k}", group=GroupKey(0, group), prompt_tokens=prompt,
            tokens=random.integers(3, 250, length).astype(np.int32),
            loss_mask=np.ones(length, np.float32),
            behavior_logprobs=np.full(length, -1, np.float32),
            token_versions=np.zeros(length, np.int32), reference_logprobs=None,
            reward=float(k), finish_reason="stop",
            images=tuple(replace(image, file=b"") for image in images),
        )  # fmt: skip

    return [sample(k, length) for k, length in enumerate(lengths)]


def mixture(family: VisionFamily) -> list[TrainingSample]:
    """Two images, one image, text alone; and a group whose prompt has the same tokens as another's,
    with another image."""
    return [
        *samples_of(family, 0, (0, 1), (4, 1, 7)),
        *samples_of(family, 1, (2,), (5, 3)),
        *samples_of(family, 2, (), (6, 2)),
        *samples_of(family, 3, (5,), (3, 4)),
    ]


def price(policy: PackedPolicy, row: PackedRow) -> torch.Tensor:
    return policy(**policy.inputs(row, "cpu"))


def priced(policy: PackedPolicy, samples: list[TrainingSample], budget: int) -> dict[str, Any]:
    """Sample → its log-probs, of however many rows."""
    found = {}
    for row in pack(samples, ranks=1, budget=budget)[0]:
        values = price(policy, row).detach()
        sizes = [piece.trained.size for piece in row.pieces]
        for piece, part in zip(row.pieces, torch.split(values, sizes), strict=True):
            found[samples[piece.sequence].sample_id] = part
    return found


@pytest.mark.parametrize("budget", [2000, 130])
def test_packed_log_probs_are_those_of_each_sequence_alone(
    policy: PackedPolicy, family: VisionFamily, model: Any, budget: int
) -> None:
    samples = mixture(family)
    found = priced(policy, samples, budget)
    for one in samples:
        plain = plain_logprobs(family, model, one.prompt_tokens, one.tokens, one.images)
        torch.testing.assert_close(found[one.sample_id], plain, atol=2e-5, rtol=1e-5)


def test_changing_one_sequence_or_its_image_changes_no_other(
    policy: PackedPolicy, family: VisionFamily
) -> None:
    samples = mixture(family)
    before = priced(policy, samples, 2000)
    changed = [replace(s, images=shown(family, 8)) if s.group.ordinal == 1 else s for s in samples]
    changed[0] = replace(samples[0], tokens=samples[0].tokens[::-1].copy())
    after = priced(policy, changed, 2000)
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-5)}
    assert moved == {"0/0/0", "0/1/0", "0/1/1"}


def test_prompts_of_equal_tokens_and_other_images_share_no_span(family: VisionFamily) -> None:
    samples = [*samples_of(family, 1, (2,), (5, 3)), *samples_of(family, 3, (5,), (3, 4))]
    assert np.array_equal(samples[0].prompt_tokens, samples[2].prompt_tokens)
    (row,) = pack(samples, ranks=1, budget=2000)[0]
    assert len(row.images) == 2
    siblings = samples_of(family, 1, (2,), (5, 3))
    assert len(pack(siblings, ranks=1, budget=2000)[0][0].images) == 1


def test_a_sampled_image_token_is_priced_as_text(
    policy: PackedPolicy, family: VisionFamily
) -> None:
    samples = samples_of(family, 0, (0,), (4,))
    strange = replace(samples[0], tokens=np.array([7, family.image_token_id, 8, 9], np.int32))
    found = priced(policy, [strange], 2000)
    assert torch.isfinite(found[strange.sample_id]).all()


def test_the_tower_sees_each_image_once_and_is_not_trained(
    model_path: Path, family: VisionFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain = vision_tower.features

    def watched(family: VisionFamily, model: Any, images: list[PromptImage]) -> torch.Tensor:
        seen.extend(image.identity for image in images)
        return plain(family, model, images)

    monkeypatch.setattr(vision_tower, "features", watched)
    policy = load_policy(
        model_path, dtype=torch.float32, temperature=1.0, train_last_layers=None,
        gradient_checkpointing=True,
    )  # fmt: skip
    samples = mixture(family)
    for _ in range(2):  # two epochs
        for row in pack(samples, ranks=1, budget=130)[0]:
            price(policy, row).sum().backward()
    assert sorted(seen) == sorted({i.identity for s in samples for i in s.images})
    for name, weight in policy.named_weights():
        is_tower = any(f".{module}." in f".{name}" for module in family.frozen)
        assert weight.requires_grad != is_tower, name
        assert (weight.grad is None) == is_tower, name


def test_the_tower_is_a_weight_of_the_policy_and_none_of_the_module_that_is_sharded(
    policy: PackedPolicy, family: VisionFamily, model: Any
) -> None:
    inside = {name for name, _ in policy.named_parameters()}
    assert not any(f".{module}." in name for name in inside for module in family.frozen)
    own, plain = dict(policy.named_weights()), dict(model.named_parameters())
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in plain)


def group_with_images(family: VisionFamily) -> tuple[RolloutGroup, TrainGroup]:
    samples = samples_of(family, 0, (0, 1), (4, 3))
    completions = tuple(
        Completion(
            index=k, prompt_tokens=s.prompt_tokens, tokens=s.tokens,
            behavior_logprobs=s.behavior_logprobs, token_versions=s.token_versions, text="",
            finish_reason="stop",
        )
        for k, s in enumerate(samples)
    )  # fmt: skip
    key = GroupKey(0, 0)
    prompt = Prompt(id="p", messages=(Message("user", "x"),), route="any", images=("a", "b"))
    group = RolloutGroup(
        key=key, attempt=1, fence=1, prompt=prompt, completions=completions,
        images=shown(family, 0, 1),
    )  # fmt: skip
    ordered = TrainGroup(
        key=key, attempt=1, payload=None, reference=None, rewards=(0.0, 1.0), audit=""
    )
    return group, ordered


def test_a_stored_batch_brings_its_images_back_once_and_without_files(
    family: VisionFamily, tmp_path: Path
) -> None:
    group, ordered = group_with_images(family)
    samples = build_samples([ordered], [group], [None])
    assert {id(i) for i in samples[0].images} == {id(i) for i in samples[1].images}
    path = write_batch(tmp_path, TrainOrder(step=1, fence=1, groups=(ordered,)), samples)
    pixels = sum(image.pixels.nbytes for image in group.images)
    assert path.stat().st_size < pixels + 10_000
    found, _ = read_batch(path)
    for ours, theirs in zip(samples, found, strict=True):
        assert [i.identity for i in theirs.images] == [i.identity for i in ours.images]
        for a, b in zip(ours.images, theirs.images, strict=True):
            assert np.array_equal(a.pixels, b.pixels)
            assert (b.file, b.num_tokens) == (b"", a.num_tokens)


def test_image_tokens_are_counted_once_a_group(family: VisionFamily) -> None:
    samples = mixture(family)
    prompts = {s.group: s.prompt_tokens for s in samples}.values()
    tokens = sum(int((prompt == family.image_token_id).sum()) for prompt in prompts)
    assert image_metrics(samples) == {"images": 4.0, "image_tokens": float(tokens)}
    assert image_metrics([s for s in samples if not s.images]) == {}
