from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from actors.rendering import PromptRenderer
from safeladder.errors import ConfigError
from safeladder.ports import PromptTooLongError
from safeladder.records import Message, Prompt

from .conftest import ask, tiny_tokenizer


def rendered(renderer: PromptRenderer, prompt: Prompt) -> str:
    return str(tiny_tokenizer().decode(renderer.render(prompt).tolist()))


def test_a_prompt_ends_where_the_assistant_begins(model_path: Path) -> None:
    text = rendered(PromptRenderer(model_path), ask("hi"))
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_system_prompt_is_put_before_prompts_without_one(model_path: Path) -> None:
    renderer = PromptRenderer(model_path, system_prompt="be kind")
    assert rendered(renderer, ask("hi")).startswith("<|im_start|>system\nbe kind<|im_end|>")
    own = dataclasses.replace(
        ask("hi"), messages=(Message("system", "be short"), Message("user", "hi"))
    )
    assert "be kind" not in rendered(renderer, own)


def test_a_template_in_the_config_replaces_the_tokenizers_own(model_path: Path) -> None:
    renderer = PromptRenderer(model_path, chat_template="{{ messages[0]['content'] }}?")
    assert rendered(renderer, ask("hi")) == "hi?"


def test_decoding_leaves_special_tokens_out(model_path: Path) -> None:
    renderer = PromptRenderer(model_path)
    assert renderer.decode(renderer.render(ask("hé"))) == "user\nhé\nassistant\n"


def test_answers_end_with_the_tokens_of_generation_config_and_tokenizer(
    model_path: Path, tmp_path: Path
) -> None:
    for file in model_path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert PromptRenderer(tmp_path).stop_ids == (0, 2, 7)


def test_what_cannot_be_rendered_is_refused_in_a_sentence(model_path: Path, tmp_path: Path) -> None:
    renderer = PromptRenderer(model_path)
    with pytest.raises(PromptTooLongError, match="24 tokens, the limit is 10"):
        renderer.render(ask("hello"), max_tokens=10)
    with pytest.raises(ValueError, match="images"):
        renderer.render(dataclasses.replace(ask("hi"), images=("a.png",)))
    bare = tiny_tokenizer()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"set model\.chat_template"):
        PromptRenderer(tmp_path)
