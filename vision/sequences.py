"""Token sequences with images as the inputs of a plain Hugging Face model, for engines and the
reference. Text models go this way too, so that there is one. Knows no sampling and no packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safeladder.images import PromptImage
from safeladder.records import Tokens
from vision.family import VisionFamily, features, image_places, sees

if TYPE_CHECKING:
    from torch import Tensor


def model_class(path: Path) -> Any:
    """The auto class that loads the model in a folder with its output layer."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if sees(path) else AutoModelForCausalLM


def whole_inputs(
    family: VisionFamily | None,
    model: Any,
    sequences: Tensor,
    prompt: Tokens,
    images: Sequence[PromptImage],
) -> dict[str, Any]:
    """Keyword arguments for ``sequences`` [R, N], equally long, that begin with one ``prompt``
    [P]: its image tokens become features; those that a policy may have sampled behind it do not."""
    import torch

    ids = sequences.to(model.device)
    if family is None:
        return {"input_ids": ids}
    embeds = model.get_input_embeddings()(ids)
    if images:
        places = torch.from_numpy(image_places(family, prompt)).to(ids.device)
        embeds = embeds.clone()
        embeds[:, places] = features(family, model, images).to(embeds.dtype)
    positions = family.positions(sequences[0].cpu().numpy(), images)
    placed = torch.from_numpy(positions).to(ids.device).long()[:, None].expand(-1, len(ids), -1)
    return {
        "inputs_embeds": embeds,
        "position_ids": placed if len(positions) > 1 else placed[0],
    }


def later_inputs(
    family: VisionFamily | None, model: Any, tokens: Tensor, first_position: int
) -> dict[str, Any]:
    """Keyword arguments for ``tokens`` [R, T] behind what a cache holds."""
    import torch

    ids = tokens.to(model.device)
    if family is None:
        return {"input_ids": ids}
    steps = torch.arange(first_position, first_position + ids.shape[1], device=ids.device)
    return {"input_ids": ids, "position_ids": steps.expand(len(ids), -1)}


def position_behind(
    family: VisionFamily | None, prompt: Tokens, images: Sequence[PromptImage]
) -> int:
    """Position of the first token of an answer."""
    return prompt.size if family is None else int(family.positions(prompt, images).max()) + 1
