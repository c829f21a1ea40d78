"""A tiny random InternVL in transformers' own layout, the same wherever it is built."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.tiny_model import tiny_tokenizer

VISION = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
NAMES = ("start_image_token", "end_image_token", "context_image_token", "video_token")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TILE = 28


def tiny_internvl_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(VISION), special_tokens=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>",
        chat_template=CHAT, extra_special_tokens=dict(zip(NAMES, VISION, strict=True)),
    )  # fmt: skip


def tiny_internvl_model(tokenizer: PreTrainedTokenizerFast) -> InternVLForConditionalGeneration:
    text = dict(
        model_type="qwen2", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True, initializer_range=0.15,
    )  # fmt: skip
    vision = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=(TILE, TILE), patch_size=(7, 7), initializer_range=0.15,
    )  # fmt: skip
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_seq_length=4, tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    torch.manual_seed(7)
    return InternVLForConditionalGeneration(config).float().eval()


def save_tiny_internvl_model(folder: Path) -> Path:
    """Model, tokenizer and image processor in Hugging Face layout; returns the folder."""
    tokenizer = tiny_internvl_tokenizer()
    tiny_internvl_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=4
    ).save_pretrained(folder)
    return folder
