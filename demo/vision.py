"""Builds a vision-language model that runs on two cores, and drawn pictures to ask it about.

    python -m demo.vision                    # SmolLM2 with a vision tower, 136M parameters
    python -m demo.vision --tiny             # 3M parameters, random

The grafted model is a Qwen2.5-VL whose language part has SmolLM2's weights: it speaks as SmolLM2
does, to the last bit, and its tower is untrained. It shows that the path runs, not that it sees.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SMOLLM2 = Path("build/models/smollm2-135m-instruct")
MODEL = Path("build/models/smollm2-vision")
PICTURES = Path("build/pictures")
COLORS = ("red", "green", "blue", "yellow", "white", "black")
SHAPES = ("circle", "square", "triangle")
SIDE = 84
"""Pixels of a picture: nine tokens."""
VISION_TOKENS = [f"<|{n}|>" for n in ("vision_start", "vision_end", "image_pad", "video_pad")]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vision_tokenizer(language_model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model with the tokens that Qwen2.5-VL needs, and a template."""
    tokenizer = AutoTokenizer.from_pretrained(language_model, local_files_only=True)
    tokenizer.add_tokens(VISION_TOKENS, special_tokens=True)
    tokenizer.chat_template = CHAT
    return tokenizer


def make_config(
    tokenizer: PreTrainedTokenizerBase, text: dict[str, Any], tower: tuple[int, int], theta: float
) -> Qwen2_5_VLConfig:
    """A Qwen2.5-VL with a tower of (width, depth). ``text`` has the sizes of the language part."""
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    width, depth = tower
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    rope = {
        "rope_type": "default", "rope_theta": theta,
        "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), max_position_embeddings=8192, rms_norm_eps=1e-5,
            rope_parameters=rope, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True, **text,
        ),
        vision_config=dict(
            depth=depth, hidden_size=width, intermediate_size=2 * width, num_heads=4, patch_size=14,
            spatial_merge_size=2, temporal_patch_size=2, window_size=112,
            fullatt_block_indexes=[depth - 1], out_hidden_size=text["hidden_size"],
        ),
        tie_word_embeddings=True, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip


def save_tiny(folder: Path, language_model: Path = SMOLLM2) -> Path:
    """A random model of 3M parameters, most of them the embedding; returns its folder."""
    tokenizer = vision_tokenizer(language_model)
    text = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(7)
    config = make_config(tokenizer, text, (32, 2), 1e4)
    return _save(folder, Qwen2_5_VLForConditionalGeneration(config), tokenizer)


def save_grafted(folder: Path, language_model: Path = SMOLLM2) -> Path:
    """SmolLM2's weights in the language part of a Qwen2.5-VL; returns its folder."""
    tokenizer = vision_tokenizer(language_model)
    source = AutoModelForCausalLM.from_pretrained(
        language_model, dtype=torch.float32, local_files_only=True
    )
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )  # fmt: skip
    text = {name: getattr(source.config, name) for name in names}
    torch.manual_seed(7)
    config = make_config(tokenizer, text, (128, 4), source.config.rope_parameters["rope_theta"])
    model = Qwen2_5_VLForConditionalGeneration(config)
    graft(source, model)
    return _save(folder, model, tokenizer)


@torch.no_grad()
def graft(language_model: PreTrainedModel, model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Copy every tensor of a Llama-like model; new tokens get the mean of all embeddings."""
    source = language_model.state_dict()
    for name, parameter in model.model.language_model.named_parameters():
        if name.endswith("_proj.bias"):  # Llama has no bias in its attention
            parameter.zero_()
            continue
        weight = source[f"model.{name}"]
        parameter[: len(weight)] = weight
        parameter[len(weight) :] = weight.mean(0)  # empty for all but the embedding
    model.tie_weights()


def draw_rows(folder: Path, count: int, seed: int) -> Path:
    """Pictures of one shape each, and a file of questions about one or two of them: columns
    ``prompt``, ``images``, ``reference``. Returns the file."""
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        seen = [_scene(rng) for _ in range(1 + number % 2)]
        names = [f"images/{seed}-{number}-{k}.png" for k in range(len(seen))]
        for name, (color, ground, shape) in zip(names, seen, strict=True):
            _draw(color, ground, shape).save(folder / name)
        question, answer = _ask(rng, seen)
        rows.append({"id": f"{seed}-{number}", "prompt": question, "images": names,
                     "reference": answer})  # fmt: skip
    path = folder / f"pictures-{seed}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _scene(rng: random.Random) -> tuple[str, str, str]:
    color, ground = rng.sample(COLORS, 2)
    return color, ground, rng.choice(SHAPES)


def _ask(rng: random.Random, seen: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    short = "Answer with one word."
    if len(seen) == 2:
        is_same = seen[0][2] == seen[1][2]
        return (
            f"First picture: <image> Second picture: <image> Do both show the same shape? {short}",
            "yes" if is_same else "no",
        )
    color, ground, shape = seen[0]
    return rng.choice([
        (f"What color is the shape? {short}", color),
        (f"What color is the background? {short}", ground),
        (f"Which shape is it, {', '.join(SHAPES)}? {short}", shape),
    ])  # fmt: skip


def _draw(color: str, ground: str, shape: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw, low, high = ImageDraw.Draw(image), SIDE // 5, SIDE - SIDE // 5
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=color)
    elif shape == "square":
        draw.rectangle((low, low, high, high), fill=color)
    else:
        draw.polygon([(SIDE // 2, low), (low, high), (high, high)], fill=color)
    return image


def _save(
    folder: Path,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=336 * 336).save_pretrained(folder)
    return folder


def main() -> None:
    """Build the model and the pictures, and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="a random model of 3M parameters")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--language-model", type=Path, default=SMOLLM2)
    parser.add_argument("--rows", type=int, default=64)
    chosen = parser.parse_args()
    save = save_tiny if chosen.tiny else save_grafted
    print(f"model: {save(chosen.model, chosen.language_model)}")
    print(f"train: {draw_rows(chosen.pictures, chosen.rows, seed=1)}")
    print(f"held out: {draw_rows(chosen.pictures, max(4, chosen.rows // 4), seed=2)}")


if __name__ == "__main__":
    main()
