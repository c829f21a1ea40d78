"""Whether the model of a run can do what its config asks: known from its files alone."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.model_folder import ModelFolder
from safeladder.config import Config
from safeladder.errors import ConfigError, EnvironmentUnfitError
from safeladder.paths import is_file
from vision.family import FAMILIES


def check_model(config: Config, model: ModelFolder) -> None:
    """Raise ``ConfigError`` or ``EnvironmentUnfitError`` unless the model fits ``config``."""
    check_architecture(model)
    check_layers(config, model)
    check_adapters(config, model)
    check_context(config, model)
    check_chat_template(config.model.chat_template)


def check_architecture(model: ModelFolder) -> None:
    """Refuse an architecture that the model library does not know: no code comes from a folder; and
    one with a vision part that is not known here: neither tower nor text would be loaded."""
    if model.has_vision and model.model_type not in FAMILIES:
        raise EnvironmentUnfitError(
            f"model {model.path}: vision-language models of model_type {model.model_type!r} are "
            f"not known here, those of {' and '.join(FAMILIES)} are (docs/vision.md)"
        )
    if _has_a_folder(model.model_type or ""):
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model.model_type not in CONFIG_MAPPING_NAMES:
        close = difflib.get_close_matches(str(model.model_type), CONFIG_MAPPING_NAMES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose a model of a known architecture"
        raise EnvironmentUnfitError(
            f"model {model.path}: the model_type in config.json, {model.model_type!r}, is none "
            f"that the installed transformers knows; {hint}"
        )


def _has_a_folder(model_type: str) -> bool:
    """Whether transformers keeps a module of that name: it is slow to import, and most do."""
    library = importlib.util.find_spec("transformers")
    folder = model_type.replace("-", "_")
    places = (library.submodule_search_locations if library else None) or ()
    return folder.isidentifier() and any(
        is_file(Path(place, "models", folder, "__init__.py")) for place in places
    )


def check_layers(config: Config, model: ModelFolder) -> None:
    """Refuse to train more layers than the model has. Raises ``ConfigError``."""
    wanted, there = config.learner.train_last_layers, len(model.parameters_by_layer)
    if wanted is not None and 0 < there < wanted:
        raise ConfigError(
            f"learner.train_last_layers {wanted}: the model has {there} layers; give at most that, "
            "or null to train everything"
        )


def check_adapters(config: Config, model: ModelFolder) -> None:
    """Refuse a LoRA target that matches no layer of the decoder, and a rank above that of every
    layer. Raises ``ConfigError``."""
    lora, there = config.learner.lora, {name for _, name, _, _ in model.matrices}
    if lora is None or not there:
        return
    largest = max(min(outputs, inputs) for _, _, outputs, inputs in model.matrices)
    if lora.rank > largest:
        raise ConfigError(
            f"learner.lora.rank {lora.rank}: no layer of the model has a rank above {largest}; "
            "8 to 64 are usual, and learner.lora: null trains the weights themselves"
        )
    if lora.target == "all-linear":
        return
    for target in lora.target:
        if target not in there:
            close = difflib.get_close_matches(target, there, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(there))}"
            raise ConfigError(
                f"learner.lora.target: {target!r} is no linear layer of the model's decoder; {hint}"
            )


def check_context(config: Config, model: ModelFolder) -> None:
    """Refuse samples that are longer than the positions that the model knows."""
    wanted, known = config.rollout.max_model_tokens, model.max_positions
    if config.generates and known is not None and wanted > known:
        raise ConfigError(
            f"{config.rollout.context_keys} is {wanted}, but the model has {known} positions; "
            "lower one of them"
        )


def check_chat_template(template: str | None) -> None:
    """Refuse a template that does not compile; what it renders is not known here."""
    if template is None:
        return
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        environment.parse(template)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"model.chat_template: line {error.lineno} is no Jinja: {error.message}; correct it, "
            "or leave it out to use the tokenizer's own"
        ) from None


class _Generation(Extension):
    """``{% generation %}``, by which templates mark what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - a class attribute is what Jinja reads

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
