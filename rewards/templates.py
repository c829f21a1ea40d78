"""Judge templates: prompt, label vocabulary, reading and score table of a judge, as YAML data.

Owns the files in ``rewards/judges`` and what is wrong with one. It asks no model.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Literal, Self, TypeVar

import yaml
from pydantic import Field, PositiveInt, ValidationError, model_validator

from rewards.labels import parse_label, parse_leading, parse_majority, parse_number
from rewards.language import is_chinese
from safeladder.config import Section, Share
from safeladder.errors import ConfigError
from safeladder.paths import is_file
from safeladder.records import ScoreRequest

_FOLDER = Path(__file__).with_name("judges")
_FIELDS = frozenset({"question", "answer", "chain", "reference", "fence", "labels"})
_TO_JUDGE = frozenset({"answer", "chain"})

AnySection = TypeVar("AnySection", bound=Section)


class JudgePrompt(Section):
    """What the judge is told. ``$question``, ``$answer``, ``$chain``, ``$reference``, ``$labels``
    and ``$fence`` are filled in, once; ``$$`` is a dollar sign."""

    system: str
    user: str

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        if unknown := self.fields - _FIELDS:
            raise ValueError(f"unknown fields {sorted(unknown)}; known: {sorted(_FIELDS)}")
        told = set(Template(self.user).get_identifiers())
        if missing := {"fence"} - told:
            raise ValueError(f"`user` must contain {sorted(missing)}")
        if not told & _TO_JUDGE:
            raise ValueError(f"`user` must contain one of {sorted(_TO_JUDGE)}")
        return self

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that are filled in."""
        return frozenset(n for t in (self.system, self.user) for n in Template(t).get_identifiers())


class JudgeTemplate(Section):
    """A template file (YAML): prompt, label vocabulary and score table as data."""

    version: str
    """Raise it when the wording changes; the whole file is part of the verifier's version too."""
    scores: dict[str, Share] = Field(min_length=2)
    """Label → score."""
    aliases: dict[str, str] = Field(default_factory=dict)
    """Another word in a reply → the label that it means."""
    parse: Literal["leading", "earliest", "majority", "number"] = "leading"
    """The label that the reply begins with, the first one anywhere in it, the one on most lines,
    or the number that the whole reply is. A small model may recite all labels, which ``earliest``
    takes for the first of them."""
    tie: str | None = None
    """Label that wins an even vote of lines; needed by ``majority``."""
    blank: str | None = None
    """Label of a blank answer, given without asking the model."""
    needs: frozenset[Literal["image", "reference"]] = frozenset()
    """``image``: NOT_APPLICABLE to samples without one. ``reference``: INVALID without one."""
    max_tokens: PositiveInt = 16
    """Length limit of the reply."""
    prompt: JudgePrompt
    routes: dict[str, JudgePrompt] = Field(default_factory=dict)
    """Route → another prompt, for example one that hides the question of a jailbreak."""
    chinese: JudgePrompt | None = None
    """Prompt for questions in Chinese, on routes without a prompt of their own."""

    @model_validator(mode="after")
    def _labels_are_known(self) -> Self:
        named: dict[str, str | None] = {
            f"alias {word!r}": label for word, label in self.aliases.items()
        }
        if self.parse == "majority" or self.tie is not None:
            named["tie"] = self.tie
        if self.blank is not None:
            named["blank"] = self.blank
        for key, label in named.items():
            if label not in self.scores:
                raise ValueError(f"{key} {label!r} is not one of the labels {sorted(self.scores)}")
        if self.parse == "number":
            for label in (*self.scores, *self.aliases):
                float(label)
        return self

    @property
    def reads_chain(self) -> bool:
        """Whether the judge is shown the chain of thought."""
        prompts = (self.prompt, self.chinese, *self.routes.values())
        return any(prompt is not None and "chain" in prompt.fields for prompt in prompts)

    def prompt_of(self, request: ScoreRequest) -> JudgePrompt:
        """What the judge is told about this sample."""
        if request.route in self.routes:
            return self.routes[request.route]
        if self.chinese is not None and is_chinese(request.question):
            return self.chinese
        return self.prompt

    def label_of(self, reply: str) -> str | None:
        """The label in a judge's reply, or None."""
        names = [*self.scores, *self.aliases]
        if self.parse == "majority" and self.tie is not None:
            found = parse_majority(reply, names, self.tie)
        else:
            readings = {
                "leading": parse_leading, "earliest": parse_label, "number": parse_number,
            }  # fmt: skip
            found = readings[self.parse](reply, names)
        return None if found is None else self.aliases.get(found, found)


def load_template(name: str) -> JudgeTemplate:
    """Read ``judges/<name>.yaml`` of this room, or the file ``name`` if it ends in ``.yaml``.

    Raises ``ConfigError`` naming the file and the fault.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not is_file(path):
        raise ConfigError(
            f"judge template {name!r} not found; choose from {', '.join(template_names())} or give "
            "a .yaml file"
        )
    return read_template(path, JudgeTemplate, "judge template")


def read_template(path: Path, section: type[AnySection], kind: str) -> AnySection:
    """A template file as such a section. Raises ``ConfigError`` naming ``kind``, file and fault."""
    try:
        return section.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{kind} {path}: {at}: {first['msg']}") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {path} cannot be read: {error}") from None


def template_names() -> list[str]:
    """The templates of this room."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))
