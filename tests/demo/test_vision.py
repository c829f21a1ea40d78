"""The grafted model speaks as its language model does; the pictures are what the rows say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLForConditionalGeneration

from actors.rendering import PromptRenderer
from demo.vision import draw_rows, save_grafted, save_tiny
from safeladder.config import ModelConfig
from safeladder.records import Message, Prompt
from tests.tiny_model import tiny_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of SmolLM2's architecture."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        initializer_range=0.15, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_grafted_model_has_the_logits_of_its_language_model(llama: Path, tmp_path: Path) -> None:
    grafted = Qwen2_5_VLForConditionalGeneration.from_pretrained(save_grafted(tmp_path, llama))
    source = LlamaForCausalLM.from_pretrained(llama)
    ids = torch.randint(3, source.config.vocab_size, (1, 30))
    with torch.no_grad():
        ours = grafted.eval()(input_ids=ids).logits[..., : source.config.vocab_size]
        theirs = source.eval()(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_rows_show_what_they_ask_about(llama: Path, tmp_path: Path) -> None:
    path = draw_rows(tmp_path / "pictures", 6, seed=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [len(row["images"]) for row in rows] == [1, 2] * 3
    renderer = PromptRenderer.from_config(ModelConfig(path=save_tiny(tmp_path / "tiny", llama)))
    for row in rows:
        shown = tuple(str(path.parent / image) for image in row["images"])
        prompt = Prompt(
            id=row["id"], messages=(Message("user", row["prompt"]),), route="any", images=shown
        )
        images = renderer.look(prompt)
        assert [image.num_tokens for image in images] == [9] * len(shown)
        assert renderer.render(prompt, images=images).size > 9 * len(shown)
        if "color is the shape" in row["prompt"]:
            middle = Image.open(shown[0]).getpixel((42, 42))
            assert middle == Image.new("RGB", (1, 1), row["reference"]).getpixel((0, 0))
