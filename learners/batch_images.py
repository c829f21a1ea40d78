"""Images of a stored batch: each once, as the pixels that the model was shown, so that a step can
be taken again from the batch alone when the files are long gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from safeladder.images import PromptImage, distinct
from safeladder.records import TrainingSample

Arrays = dict[str, npt.NDArray[Any]]
METADATA = "images"


def image_arrays(samples: Sequence[TrainingSample]) -> tuple[Arrays, dict[str, str]]:
    """What a batch file holds of images, and its metadata; both empty for text.

    ``image_pixels``: all bytes of K images, ``image_shapes`` [K, 4], ``sample_images``: which of
    them each sample shows, one sample after another, ``sample_image_offsets`` [samples + 1].
    """
    images = distinct(samples)
    if not images:
        return {}, {}
    number = {identity: k for k, identity in enumerate(images)}
    shown = [number[image.identity] for sample in samples for image in sample.images]
    arrays: Arrays = {
        "image_pixels": np.concatenate([image.pixels.reshape(-1) for image in images.values()]),
        "image_shapes": np.array([image.pixels.shape for image in images.values()], np.int64),
        "sample_images": np.array(shown, np.int64),
        "sample_image_offsets": np.cumsum([0, *(len(s.images) for s in samples)], dtype=np.int64),
    }
    facts = [{"digest": i.digest, "num_tokens": i.num_tokens} for i in images.values()]
    return arrays, {METADATA: json.dumps(facts)}


def read_images(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str], num_samples: int
) -> list[tuple[PromptImage, ...]]:
    """The images of each sample; those of siblings are the same objects."""
    if METADATA not in metadata:
        return [()] * num_samples
    ends = np.cumsum([0, *arrays["image_shapes"].prod(axis=1)])
    images = [
        PromptImage(
            digest=facts["digest"],
            pixels=arrays["image_pixels"][ends[k] : ends[k + 1]].reshape(arrays["image_shapes"][k]),
            num_tokens=facts["num_tokens"],
        )
        for k, facts in enumerate(json.loads(metadata[METADATA]))
    ]
    offsets = arrays["sample_image_offsets"]
    return [
        tuple(images[int(k)] for k in arrays["sample_images"][slice(*offsets[i : i + 2])])
        for i in range(num_samples)
    ]


def image_metrics(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """``images`` and ``image_tokens`` of a batch's prompts, each prompt once; empty for text."""
    groups = {sample.group: sample.images for sample in samples if sample.images}
    if not groups:
        return {}
    shown = [image for images in groups.values() for image in images]
    tokens = float(sum(image.num_tokens for image in shown))
    return {"images": float(len(shown)), "image_tokens": tokens}
