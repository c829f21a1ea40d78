"""Between text and token ids: the model's own tokenizer and chat template.

Owns rendering of prompts, with the tokens that stand for their images, the ids that end an answer,
and decoding. Knows neither engines nor sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, GenerationConfig

from safeladder.config import ModelConfig
from safeladder.errors import ConfigError
from safeladder.images import IMAGE_MARK, PromptImage
from safeladder.ports import PromptTooLongError
from safeladder.records import Message, Prompt, Tokens
from vision.family import VisionFamily, expand_slots, family_of, look
from vision.reading import BadImageError, read_image


class PromptRenderer:
    """Chat messages in, token ids out; token ids in, text out.

    Raises ``ConfigError`` on construction if there is neither a template in the tokenizer nor one
    in ``model.chat_template``, or if no id is known that ends an answer.
    """

    def __init__(
        self,
        model_path: Path,
        system_prompt: str | None = None,
        chat_template: str | None = None,
        family: VisionFamily | None = None,
    ) -> None:
        """``family``: of a model that sees; without it, prompts with images are refused."""
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
        self._system_prompt = system_prompt
        self._chat_template = chat_template
        self._frames: dict[str, tuple[str, str]] = {}
        """Role → what the template puts around its text after an answer."""
        if chat_template is None and self._tokenizer.chat_template is None:
            raise ConfigError(
                f"the tokenizer in {model_path} has no chat template: set model.chat_template"
            )
        self.family = family
        self.stop_ids = self._read_stop_ids(model_path)
        """Ids after any of which an answer is complete, in rising order."""

    @classmethod
    def from_config(cls, model: ModelConfig) -> PromptRenderer:
        """The renderer that ``model`` in the config describes."""
        family = family_of(model.path, model.image_min_pixels, model.image_max_pixels)
        return cls(model.path, model.system_prompt, model.chat_template, family)

    def look(self, prompt: Prompt) -> tuple[PromptImage, ...]:
        """Read the images of a prompt and bring them to the model's size; none for text.

        Raises ``BadImageError``, also if the model sees no images.
        """
        return self.look_at(prompt.images)

    def look_at(self, paths: Sequence[str]) -> tuple[PromptImage, ...]:
        """The same for paths of images."""
        if not paths:
            return ()
        if self.family is None:
            raise BadImageError(f"{paths[0]}: the model reads text only, no images")
        return look(self.family, [read_image(path) for path in paths])

    def render(
        self, prompt: Prompt, max_tokens: int | None = None, images: Sequence[PromptImage] = ()
    ) -> Tokens:
        """Token ids [P] of the conversation, ending where the assistant's turn begins; ``images``
        are what ``look`` gave.

        Raises ``PromptTooLongError`` above ``max_tokens``, the tokens of images counted, and
        ``BadImageError`` if images are missing or have no place.
        """
        if len(images) != len(prompt.images):
            raise BadImageError(
                f"prompt {prompt.id} has {len(prompt.images)} images, and {len(images)} are given"
            )
        tokens = self.render_messages(prompt.messages, images)
        if max_tokens is not None and tokens.size > max_tokens:
            raise PromptTooLongError(
                f"prompt {prompt.id} renders to {tokens.size} tokens, the limit is {max_tokens}"
            )
        return tokens

    def render_messages(
        self, messages: tuple[Message, ...], images: Sequence[PromptImage] = ()
    ) -> Tokens:
        """Token ids [P] of a conversation with generation prompt; the system prompt is put first
        unless the conversation has a system turn of its own. Images stand where the text says
        ``<image>``; if it nowhere does, before the text of the last turn."""
        ids = self._apply_template(messages, tokenize=True, num_images=len(images))
        if images and self.family is not None:
            return expand_slots(self.family, ids, images)
        return np.asarray(ids, dtype=np.int32)

    def render_with_offsets(
        self, prompt: Prompt
    ) -> tuple[str, Tokens, tuple[tuple[int, int], ...]]:
        """The conversation as text, its token ids [P] (those of ``render``), and for each token its
        first character in the text and the one after its last.

        Raises ``ConfigError`` for a tokenizer that cannot tell, or that makes other tokens of the
        text than of the conversation.
        """
        tokens = self.render(prompt)
        text: str = self._apply_template(prompt.messages, tokenize=False)
        if not self._tokenizer.is_fast:
            raise ConfigError("this tokenizer does not tell where in a text its tokens lie")
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"] != tokens.tolist():
            raise ConfigError("the tokenizer makes other tokens of a rendered conversation's text")
        return text, tokens, tuple((int(a), int(b)) for a, b in encoded["offset_mapping"])

    def encode_answer(self, text: str) -> Tokens:
        """Token ids [T] of an answer to be imitated, with the tokenizer's stop token behind it.

        Raises ``ConfigError`` for a tokenizer that names none.
        """
        stop_id = self._tokenizer.eos_token_id
        if stop_id is None:
            raise ConfigError("the tokenizer names no end-of-sequence token: answers cannot end")
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray([*ids, stop_id], dtype=np.int32)

    def encode_prefix(self, text: str) -> Tokens:
        """Token ids [T] of the beginning of an answer that goes on; none for an empty text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return np.asarray(ids, dtype=np.int32)

    def encode_label(self, text: str) -> Tokens:
        """Token ids [T] of the beginning of an answer: no stop token behind it.

        Raises ``ValueError`` for a text without a token, which has no log-prob.
        """
        ids = self.encode_prefix(text)
        if not ids.size:
            raise ValueError("a label without a token has no log-prob")
        return ids

    def encode_reply(self, role: str | None, text: str, *, closes: bool) -> Tokens:
        """Token ids [R] of what an environment says: the end of the model's turn unless it
        ``closes`` it itself, the turn of ``role``, and the beginning of the model's next one.

        The control tokens are the template's; ``text`` makes none, whatever it spells. Without a
        role the text stands for all of that and is tokenized as it is. Raises ``ValueError`` for a
        template that does not render such a turn.
        """
        if role is None:
            return self._encode(text)
        before, after = self._frame(role)
        if closes:
            stops = (self.decode_all(np.asarray([stop])) for stop in self.stop_ids)
            stop = next((spelled for spelled in stops if before.startswith(spelled)), "")
            before = before.removeprefix(stop)
        inner = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        control = set(self._tokenizer.all_special_ids)
        plain = np.asarray([token for token in inner if token not in control], dtype=np.int32)
        return np.concatenate([self._encode(before), plain, self._encode(after)])

    def _encode(self, text: str) -> Tokens:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def _frame(self, role: str) -> tuple[str, str]:
        """What the template puts between an answer and the text of the next turn, and behind it."""
        if role not in self._frames:
            answer, said = "safeladder-answer", "safeladder-said"
            turns = [("user", "safeladder-asked"), ("assistant", answer), (role, said)]
            rendered = self._tokenizer.apply_chat_template(
                [{"role": name, "content": content} for name, content in turns],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            before, found, after = rendered.partition(answer)[2].partition(said)
            if not found:
                raise ValueError(f"the chat template renders no turn of role {role!r}")
            self._frames[role] = before, after
        return self._frames[role]

    def decode(self, tokens: Tokens) -> str:
        """Text of sampled ids [T] without special tokens."""
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return text

    def decode_all(self, tokens: Tokens) -> str:
        """Text of ids [T] with special tokens."""
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        return text

    def _apply_template(
        self, messages: tuple[Message, ...], *, tokenize: bool, num_images: int = 0
    ) -> Any:
        """Token ids, or the text that they stand for; one slot for each image."""
        turns: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in messages]
        if num_images:
            turns = with_image_parts(turns, num_images)
        if self._system_prompt is not None and all(m.role != "system" for m in messages):
            turns.insert(0, {"role": "system", "content": self._system_prompt})
        return self._tokenizer.apply_chat_template(
            turns,
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=tokenize,
            return_dict=False,
        )

    def _read_stop_ids(self, model_path: Path) -> tuple[int, ...]:
        found: set[int] = set()
        if (model_path / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(model_path, local_files_only=True)
            eos = generation.eos_token_id
            found |= set(eos) if isinstance(eos, list) else {eos} - {None}
        if self._tokenizer.eos_token_id is not None:
            found.add(self._tokenizer.eos_token_id)
        if not found:
            raise ConfigError(f"the model in {model_path} names no end-of-sequence token")
        return tuple(sorted(found))


def with_image_parts(turns: Sequence[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Chat turns whose content is a list of text and image parts where an image stands.

    Raises ``BadImageError`` if the text has marks, but not one for each image.
    """
    marks = sum(turn["content"].count(IMAGE_MARK) for turn in turns)
    if marks not in (0, num_images):
        raise BadImageError(f"the text has {marks} times {IMAGE_MARK}, for {num_images} images")
    *before, last = turns
    if marks == 0:
        text = {"type": "text", "text": last["content"]}
        return [*before, {**last, "content": [*[{"type": "image"}] * num_images, text]}]
    return [{**turn, "content": _parts(turn["content"])} for turn in turns]


def _parts(text: str) -> str | list[dict[str, str]]:
    first, *rest = text.split(IMAGE_MARK)
    if not rest:
        return text
    parts = [{"type": "text", "text": first}] if first else []
    for piece in rest:
        parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
