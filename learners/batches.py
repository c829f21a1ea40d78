"""From an order to training samples, and the file from which a step can be replayed.

Owns the layout of ``batches/step-N.safetensors``. Knows no store (payloads come fetched) and reads
no verdict: their text is only kept beside the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from learners.batch_images import image_arrays, read_images
from learners.disk import naming_the_disk
from learners.safetensors_stream import SafetensorsStream, Slot
from safeladder.commit_points import reached
from safeladder.paths import refuse_pipe
from safeladder.records import (
    Completion,
    Floats,
    GroupKey,
    RolloutGroup,
    TrainGroup,
    TrainingSample,
    TrainOrder,
)

TOKEN_ARRAYS = ("tokens", "loss_mask", "behavior_logprobs", "token_versions")
"""Arrays of a sample with one entry for each sampled token."""
UNREADABLE = (OSError, SafetensorError, KeyError, ValueError)
"""What ``read_batch`` raises for a file that is damaged, or none of a batch."""


def build_samples(
    groups: Sequence[TrainGroup],
    payloads: Sequence[RolloutGroup],
    references: Sequence[Sequence[Floats] | None],
) -> list[TrainingSample]:
    """Samples of all groups in lease order; a completion whose reward is None is left out.

    Raises ``ValueError`` if a payload is not the group that was ordered, or counts differ.
    """
    samples: list[TrainingSample] = []
    for group, payload, reference in zip(groups, payloads, references, strict=True):
        if (payload.key, payload.attempt) != (group.key, group.attempt):
            raise ValueError(
                f"the order names group {group.key} attempt {group.attempt}, its payload is "
                f"{payload.key} attempt {payload.attempt}"
            )
        images = tuple(replace(image, file=b"") for image in payload.images)
        priced = reference if reference is not None else [None] * len(payload.completions)
        for completion, reward, logprobs in zip(
            payload.completions, group.rewards, priced, strict=True
        ):
            if reward is None:
                continue
            samples.append(
                TrainingSample(
                    sample_id=f"{group.key}/{completion.index}",
                    group=group.key,
                    prompt_tokens=completion.prompt_tokens,
                    tokens=completion.tokens,
                    loss_mask=_loss_mask(completion),
                    behavior_logprobs=completion.behavior_logprobs,
                    token_versions=completion.token_versions,
                    reference_logprobs=logprobs,
                    reward=reward,
                    finish_reason=completion.finish_reason,
                    images=images,
                )
            )
    return samples


def _loss_mask(completion: Completion) -> Floats:
    if completion.loss_mask is None:
        return np.ones(completion.tokens.shape, np.float32)
    return completion.loss_mask.astype(np.float32)


def write_batch(folder: Path, order: TrainOrder, samples: Sequence[TrainingSample]) -> Path:
    """Write ``step-N.safetensors`` whole or not at all: all arrays concatenated, with offsets
    ``[num_samples + 1]``, and the audit text of the groups as metadata.

    A step that is done again replaces its batch.
    """
    reached("batch.begun", order.step)
    arrays: dict[str, npt.NDArray[Any]] = {
        "prompt_tokens": _joined([s.prompt_tokens for s in samples], np.int32),
        "prompt_offsets": _offsets([s.prompt_tokens for s in samples]),
        "offsets": _offsets([s.tokens for s in samples]),
        "rewards": np.array([s.reward for s in samples], np.float64),
        "groups": np.array([s.group for s in samples], np.int64).reshape(-1, 2),
    }
    for name in TOKEN_ARRAYS:
        columns = [getattr(s, name) for s in samples]
        arrays[name] = _joined(columns, columns[0].dtype if columns else np.int32)
    priced = [s.reference_logprobs for s in samples if s.reference_logprobs is not None]
    if priced and len(priced) == len(samples):
        arrays["reference_logprobs"] = _joined(priced, np.float32)
    metadata = {
        "step": str(order.step),
        "fence": str(order.fence),
        "sample_ids": json.dumps([s.sample_id for s in samples]),
        "finish_reasons": json.dumps([s.finish_reason for s in samples]),
        "audit": json.dumps([group.audit for group in order.groups]),
    }
    pixels, facts = image_arrays(samples)
    arrays |= pixels
    metadata |= facts
    path = batch_path(folder, order.step)
    partial = path.with_suffix(f".{order.fence}.partial")  # of its own for every driver
    with naming_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        slots = {name: Slot(str(a.dtype), a.shape) for name, a in arrays.items()}
        with SafetensorsStream(partial, slots, metadata) as file:
            for name, array in arrays.items():
                file.write(name, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        reached("batch.written", order.step)
        partial.replace(path)
        for left in folder.glob(f"{path.stem}.*.partial"):  # of drivers that were killed here
            left.unlink(missing_ok=True)
    reached("batch.renamed", order.step)
    return path


def batch_path(folder: Path, step: int) -> Path:
    """Where the batch of a step stands."""
    return folder / f"step-{step}.safetensors"


def read_batch(path: Path) -> tuple[list[TrainingSample], dict[str, str]]:
    """The samples of a written batch, equal to what was trained, and its metadata."""
    refuse_pipe(path)
    with safe_open(path, framework="numpy") as file:
        metadata: dict[str, str] = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    finish_reasons = json.loads(metadata["finish_reasons"])
    reference = arrays.get("reference_logprobs")
    samples = []
    sample_ids = json.loads(metadata["sample_ids"])
    images = read_images(arrays, metadata, len(sample_ids))
    for i, sample_id in enumerate(sample_ids):
        span = slice(*arrays["offsets"][i : i + 2])
        samples.append(
            TrainingSample(
                sample_id=sample_id,
                group=GroupKey(*map(int, arrays["groups"][i])),
                prompt_tokens=arrays["prompt_tokens"][slice(*arrays["prompt_offsets"][i : i + 2])],
                reference_logprobs=None if reference is None else reference[span],
                reward=float(arrays["rewards"][i]),
                finish_reason=finish_reasons[i],
                images=images[i],
                **{name: arrays[name][span] for name in TOKEN_ARRAYS},
            )
        )
    return samples, metadata


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)


def _offsets(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(a.size for a in arrays)], dtype=np.int64)
