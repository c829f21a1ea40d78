"""Conversations with images as the inputs of a Qwen2.5-VL model.

Owns the processor. Knows neither engines nor what is
asked. The stock processor insists on one for videos, which needs torchvision; this one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from safeladder.errors import ConfigError
from safeladder.records import Message
from vision.reading import decode_image


class ImagePrompts:
    """Renders conversations whose images stand in front of the text of their last turn.

    Raises ``ConfigError`` on construction if the chat template of the tokenizer shows no images.
    """

    def __init__(self, model_path: Path, max_pixels: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
        images = Qwen2VLImageProcessorPil.from_pretrained(model_path, local_files_only=True)
        self._processor = _ImageTextProcessor(images, tokenizer, tokenizer.chat_template)
        self._max_pixels = max_pixels
        slot, turn = self._processor.image_token, Message("user", "")
        if [self._text([turn], count).count(slot) for count in (0, 1, 2)] != [0, 1, 2]:
            raise ConfigError(
                f"the chat template of the tokenizer in {model_path} has no {slot} for each image"
            )

    def render(self, messages: Sequence[Message], images: Sequence[bytes]) -> dict[str, Any]:
        """Inputs of the model, a batch of one: ``input_ids``, ``attention_mask`` and
        ``mm_token_type_ids`` [1, P], with images also ``pixel_values`` [patches, values] and
        ``image_grid_thw`` [images, 3]. Raises ``BadImageError``."""
        pictures = [decode_image(data, self._max_pixels) for data in images]
        inputs = self._processor(
            text=[self._text(messages, len(pictures))], images=pictures or None,
            return_tensors="pt", return_mm_token_type_ids=True,
        )  # fmt: skip
        return dict(inputs)

    def _text(self, messages: Sequence[Message], num_images: int) -> str:
        *before, last = messages
        turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in before]
        parts: list[dict[str, str]] = [{"type": "image"}] * num_images
        parts.append({"type": "text", "text": last.content})
        turns.append({"role": last.role, "content": parts if num_images else last.content})
        text: str = self._processor.apply_chat_template(turns, add_generation_prompt=True)
        return text


class _ImageTextProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        for kind in ("image", "video"):
            token = f"<|{kind}_pad|>"
            setattr(self, f"{kind}_token", token)
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
