"""Images of a run's prompts, looked at before anything starts: does the model see, is each file
there and an image, and is there room for it in the prompt."""

from __future__ import annotations

from collections.abc import Iterable

from safeladder.config import Config
from safeladder.errors import ConfigError, DataError
from safeladder.images import IMAGE_MARK
from safeladder.records import Prompt
from vision.family import FAMILIES, VisionFamily, family_of, look, model_type_of
from vision.reading import BadImageError, open_image, read_image

FULLY_READ = 1_000
"""Images that are decoded to the last pixel; of all others the header is read. One that turns out
to be cut during the run fails its own group, as ``image_unreadable``."""


def check_images(config: Config, placed: Iterable[tuple[str, Prompt]]) -> None:
    """Raise ``DataError`` for the first image that the run could not show to its model, and
    ``ConfigError`` if the chat template has no place for images. Of a model that is not there
    nothing is known: then nothing is checked."""
    if model_type_of(config.model.path) is None:
        return
    family: VisionFamily | None = None
    tokens: dict[str, int | None] = {}
    for place, prompt in placed:
        if not prompt.images:
            _check_no_mark(config, prompt, place)
            continue
        _check_marks(prompt, place)
        if family is None:
            family = _seeing(config, place)
            _check_template(config, prompt, place)
        for path in prompt.images:
            if path not in tokens:
                tokens[path] = _tokens_of(path, family, place, fully=len(tokens) < FULLY_READ)
        _check_room(config, place, [tokens[path] or 0 for path in prompt.images])


def has_mark(prompt: Prompt) -> bool:
    """Whether its text says where an image stands."""
    return any(IMAGE_MARK in message.content for message in prompt.messages)


def _seeing(config: Config, place: str) -> VisionFamily:
    family = _family(config)
    if family is None:
        raise DataError(
            f"{place}: column images: the model {config.model.path} reads text only (it is none of "
            f"{', '.join(FAMILIES)}); remove the row, or its images if the question stands without "
            "them"
        )
    return family


def _family(config: Config) -> VisionFamily | None:
    model = config.model
    return family_of(model.path, model.image_min_pixels, model.image_max_pixels)


def _check_template(config: Config, prompt: Prompt, place: str) -> None:
    from actors.rendering import PromptRenderer

    renderer = PromptRenderer.from_config(config.model)
    try:
        images = renderer.look(prompt)
    except BadImageError:
        return  # is told with its path
    try:
        renderer.render(prompt, images=images)
    except BadImageError as error:
        raise ConfigError(
            f"{place}: {error}: set model.chat_template to one that shows images, or correct the "
            "row"
        ) from None


def _tokens_of(path: str, family: VisionFamily, place: str, *, fully: bool) -> int | None:
    try:
        data = read_image(path)
        if not fully:
            open_image(data)
            return None
        (image,) = look(family, [data])
        return image.num_tokens
    except BadImageError as error:
        named = str(error) if path in str(error) else f"{path}: {error}"
        raise DataError(
            f"{place}: column images: {named}; correct the path, or remove the row"
        ) from None


def _check_no_mark(config: Config, prompt: Prompt, place: str) -> None:
    """To a model that reads text only it is text like any other."""
    if has_mark(prompt) and _family(config):
        raise DataError(
            f"{place}: the text has {IMAGE_MARK}, and the row no images; add the column images, or "
            "write it differently"
        )


def _check_marks(prompt: Prompt, place: str) -> None:
    marks = sum(message.content.count(IMAGE_MARK) for message in prompt.messages)
    if marks not in (0, len(prompt.images)):
        raise DataError(
            f"{place}: the text has {marks} times {IMAGE_MARK}, for {len(prompt.images)} images; "
            "write one for each, or none to show all before the last turn's text"
        )


def _check_room(config: Config, place: str, tokens: list[int]) -> None:
    limit = config.rollout.max_prompt_tokens
    if sum(tokens) >= limit:
        raise DataError(
            f"{place}: column images: its images take {sum(tokens)} tokens, and "
            f"rollout.max_prompt_tokens is {limit}; raise it, or lower model.image_max_pixels"
        )
