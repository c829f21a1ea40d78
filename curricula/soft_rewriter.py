"""Soft constraints: what a model is asked for, and what its reply must be.

A rewriter sees the seed alone and returns one requirement; whether an answer meets it is a judge's
business. Owns the prompt and the reading of the reply; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from string import Template
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from rewards.templates import read_template
from rewards.untrusted import disarmed
from safeladder.config_section import Section
from safeladder.records import THINK_END, Message

DEFAULT = Path(__file__).with_name("soft_rewriter.yaml")
MIN_WORDS, MAX_WORDS = 3, 60
"""What is taken for a requirement; 10 to 20 words are asked for."""
_FIELDS = frozenset({"instruction", "kind", "fence"})
_CODE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_BULLET = re.compile(r"\A[-*\d.)\s\"']+")

ReplyForm = Literal["json", "line"]


class UnusableReplyError(ValueError):
    """The rewriter's reply holds no requirement."""


class RewriterTemplate(Section):
    """A template file (YAML). ``$instruction``, ``$kind`` and ``$fence`` are filled in."""

    version: str
    """Raise it when the wording changes."""
    max_tokens: PositiveInt = 160
    """Length limit of the reply."""
    reply: ReplyForm = "json"
    """``json``: an object with ``added_constraint``; ``line``: the first line of the reply."""
    system: str
    user: str

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        names = {name for t in (self.system, self.user) for name in Template(t).get_identifiers()}
        if unknown := names - _FIELDS:
            raise ValueError(f"unknown fields {sorted(unknown)}; known: {sorted(_FIELDS)}")
        if missing := _FIELDS - set(Template(self.user).get_identifiers()):
            raise ValueError(f"`user` must contain {sorted(missing)}")
        return self

    def render(self, instruction: str, kind: str) -> tuple[Message, ...]:
        """The conversation; the mark of the fence is a digest of what stands behind it."""
        mark = hashlib.sha256(instruction.encode(errors="replace")).hexdigest()[:16]
        fields = {"instruction": disarmed(instruction), "kind": kind, "fence": mark}
        return (
            Message("system", Template(self.system).substitute(fields)),
            Message("user", Template(self.user).substitute(fields)),
        )

    def constraint_in(self, reply: str) -> str:
        """The requirement, without a full stop at its end: the renderer puts one. Raises
        ``UnusableReplyError``."""
        reply = reply.rpartition(THINK_END)[2]
        text = _from_json(reply) if self.reply == "json" else _first_line(reply)
        if not text.isascii() and text != text.encode(errors="ignore").decode():
            raise UnusableReplyError(f"holds half a character: {text[:60]!r}")
        text = " ".join(text.split()).rstrip(".").strip()
        words = len(text.split())
        if not MIN_WORDS <= words <= MAX_WORDS:
            raise UnusableReplyError(
                f"{words} words; a requirement has {MIN_WORDS} to {MAX_WORDS}: {text[:60]!r}"
            )
        return text


def load_rewriter_template(path: Path | None = None) -> RewriterTemplate:
    """The template of a file; None is ours. Raises ``ConfigError`` naming file and fault."""
    return read_template(path or DEFAULT, RewriterTemplate, "rewriter template")


def _from_json(reply: str) -> str:
    text = reply.strip()
    if (code := _CODE.match(text)) is not None:
        text = code[1]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnusableReplyError(f"is no JSON ({error}): {reply[:80]!r}") from None
    value = found.get("added_constraint") if isinstance(found, dict) else None
    if not isinstance(value, str):
        raise UnusableReplyError(f"has no text under `added_constraint`: {reply[:80]!r}")
    return value


def _first_line(reply: str) -> str:
    lines = [line for line in reply.splitlines() if line.strip()]
    return _BULLET.sub("", lines[0]).rstrip("\"' ") if lines else ""
