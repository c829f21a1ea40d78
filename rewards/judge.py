"""A language model as verifier: template in, label out, score by table.

Owns the judge's prompt, the fence round untrusted text and the strict reading of the reply. It
does not know where the model runs (``rewards.completers``). A reply without a label is
INVALID(malformed); no number is ever guessed.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from string import Template
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from rewards.building import check_options, load_object
from rewards.completers import Backend, Endpoint, Local
from rewards.judging import Judgment, SampleVerifier, UnjudgedError
from rewards.labels import parse_label, parse_leading, parse_majority
from safeladder.config import Section, Share
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, Message, ScoreRequest

_FOLDER = Path(__file__).with_name("judges")
_FIELDS = frozenset({"question", "answer", "reference", "fence", "labels"})


class JudgePrompt(Section):
    """What the judge is told. ``$question``, ``$answer``, ``$reference``, ``$labels`` and
    ``$fence`` are filled in, once; ``$$`` is a dollar sign."""

    system: str
    user: str

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        used = {name for t in (self.system, self.user) for name in Template(t).get_identifiers()}
        if unknown := used - _FIELDS:
            raise ValueError(f"unknown fields {sorted(unknown)}; known: {sorted(_FIELDS)}")
        if missing := {"answer", "fence"} - set(Template(self.user).get_identifiers()):
            raise ValueError(f"`user` must contain {sorted(missing)}")
        return self


class JudgeTemplate(Section):
    """A template file (YAML): prompt, label vocabulary and score table as data."""

    version: str
    """Raise it when the wording changes; the whole file is part of the verifier's version too."""
    scores: dict[str, Share] = Field(min_length=2)
    """Label → score."""
    parse: Literal["leading", "earliest", "majority"] = "leading"
    """The label that the reply begins with, the first one anywhere in it, or the one on most
    lines. A small model may recite all labels, which ``earliest`` takes for the first of them."""
    tie: str | None = None
    """Label that wins an even vote of lines; needed by ``majority``."""
    max_tokens: PositiveInt = 16
    """Length limit of the reply."""
    prompt: JudgePrompt
    routes: dict[str, JudgePrompt] = Field(default_factory=dict)
    """Route → another prompt, for example one that hides the question of a jailbreak."""

    @model_validator(mode="after")
    def _tie_is_a_label(self) -> Self:
        if (self.parse == "majority" or self.tie is not None) and self.tie not in self.scores:
            raise ValueError(f"tie {self.tie!r} is not one of the labels {sorted(self.scores)}")
        return self

    def label_of(self, reply: str) -> str | None:
        """The label in a judge's reply, or None."""
        if self.parse == "majority" and self.tie is not None:
            return parse_majority(reply, self.scores, self.tie)
        read = parse_leading if self.parse == "leading" else parse_label
        return read(reply, self.scores)


def load_template(name: str) -> JudgeTemplate:
    """Read ``judges/<name>.yaml`` of this room, or the file ``name`` if it ends in ``.yaml``.

    Raises ``ConfigError`` naming the file and the fault.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    try:
        return JudgeTemplate.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
        raise ConfigError(
            f"judge template {name!r} not found; choose from {known} or give a .yaml file"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"judge template {path}: {at}: {first['msg']}") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"judge template {path} cannot be read: {error}") from None


class Judge(SampleVerifier):
    """Scores the visible answer by what a model says about it.

    ``template`` names a file (``load_template``). The model answers behind ``endpoint`` (base URL
    of any OpenAI-compatible server, with ``model`` and optionally ``api_key: env:NAME``), or in
    this process as ``completer: module:Class`` with ``completer_options``. ``scores`` overrides
    entries of the template's table. ``timeout_s`` bounds each call, ``max_concurrency`` the calls
    under way (endpoint), ``batch_size`` the prompts of one call (completer). Samples with images
    are INVALID(abstain): this judge reads text only.
    """

    def __init__(
        self,
        *,
        principle: str,
        template: str,
        endpoint: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        completer: str | None = None,
        completer_options: dict[str, Any] | None = None,
        scores: dict[str, Share] | None = None,
        timeout_s: PositiveFloat = 30.0,
        max_concurrency: PositiveInt = 8,
        batch_size: PositiveInt = 16,
    ) -> None:
        read = load_template(template)
        if unknown := set(scores or {}) - set(read.scores):
            raise ValueError(f"scores names no label: {sorted(unknown)}; {sorted(read.scores)}")
        self._template = read.model_copy(update={"scores": read.scores | (scores or {})})
        super().__init__(
            principle,
            {
                "template": self._template.model_dump(),
                "model": model,
                "completer": completer,
                "completer_options": completer_options,
            },
        )
        self._backend: Backend
        if (endpoint is None) == (completer is None):
            raise ValueError("give either `endpoint` with `model`, or `completer`")
        if endpoint is not None:
            if model is None:
                raise ValueError("`endpoint` needs `model`, the name the server knows it by")
            self._backend = Endpoint(endpoint, model, api_key, timeout_s, max_concurrency)
        elif completer is not None:
            where = f"principles.{principle}.options"
            cls = load_object(completer, f"{where}.completer")
            options = check_options(cls, completer_options or {}, f"{where}.completer_options")
            self._backend = Local(cls, options, timeout_s, batch_size)

    async def start(self) -> None:
        """Connect or load. Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        await self._backend.start()

    async def close(self) -> None:
        """Disconnect or unload."""
        await self._backend.close()

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Ask the model; evidence is its reply."""
        if request.images:
            raise UnjudgedError(InvalidCause.ABSTAIN, "this judge reads text only")
        reply = await self._backend.reply(self.render(request), self._template.max_tokens)
        label = self._template.label_of(reply)
        if label is None:
            raise UnjudgedError(InvalidCause.MALFORMED, f"no label in the reply {reply!r}")
        return Judgment(self._template.scores[label], label, reply)

    def render(self, request: ScoreRequest) -> tuple[Message, ...]:
        """The judge's messages. Untrusted text stands between lines that hold a fence drawn anew
        for every call, so that a response cannot close it."""
        fields = {
            "question": request.question,
            "answer": request.answer,
            "reference": request.reference or "",
            "labels": "\n".join(f"- {label}" for label in self._template.scores),
            "fence": secrets.token_hex(8),
        }
        prompt = self._template.routes.get(request.route, self._template.prompt)
        return (
            Message("system", Template(prompt.system).substitute(fields)),
            Message("user", Template(prompt.user).substitute(fields)),
        )
