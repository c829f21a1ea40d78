"""Which of two answers is better: a model is asked twice, with the answers in either order.

Only what it says in both orders counts: a judge that always prefers the first answer has no say.
Owns the prompt, the reading of the reply and the rule of agreement; it does not know where the
model runs (``rewards.completers``), nor what follows from the outcome.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Self

from pydantic import PositiveInt, model_validator

from rewards.judging import UnjudgedError
from rewards.templates import read_template
from rewards.untrusted import disarmed
from safeladder.config_section import Section
from safeladder.records import THINK_END, Message

DEFAULT = Path(__file__).with_name("pairwise") / "default.yaml"
LABELS = ("A", "B", "tie")
_FIELDS = frozenset({"instruction", "constraints", "first", "second", "fence"})
_LEAD = (
    r"(?:(?:the )?(?:better|best|winner|winning)?\s*(?:answer|response|output)?\s*(?:is)?\s*[:=]?)"
)
MAX_CHOICE_CHARS = 80
"""A longer line is no choice, and would take the expression long."""
_CHOICE = re.compile(rf"[\W_]*(?i:{_LEAD})[\W_]*(A|B|(?i:tie))[\W_]*")

Ask = Callable[[Sequence[Message]], Awaitable[str]]
"""A conversation to a reply, or an ``UnjudgedError``."""


class Outcome(StrEnum):
    """What two questions about one pair came to."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    DISAGREE = "disagree"
    """The order of the answers decided."""
    INVALID = "invalid"
    """No label in a reply, or no reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An outcome, and what it rests on."""

    outcome: Outcome
    choices: tuple[str | None, ...]
    """The label given in each of the two orders, as shown; None without one."""
    detail: str = ""
    """Why there is no label."""

    @property
    def prefers_first_place(self) -> bool | None:
        """Whether the judge took the answer that was shown first, both times, or the one shown
        second; None if neither."""
        same: dict[tuple[str | None, ...], bool] = {("A", "A"): True, ("B", "B"): False}
        return same.get(self.choices)


class PairwiseTemplate(Section):
    """A template file (YAML). ``$instruction``, ``$constraints``, ``$first``, ``$second`` and
    ``$fence`` are filled in."""

    version: str
    """Raise it when the wording changes."""
    max_tokens: PositiveInt = 8
    """Length limit of the reply."""
    system: str
    user: str

    @model_validator(mode="after")
    def _fields_are_known(self) -> Self:
        found = {name for text in (self.system, self.user) for name in _names(text)}
        if unknown := found - _FIELDS:
            raise ValueError(f"unknown fields {sorted(unknown)}; known: {sorted(_FIELDS)}")
        if missing := {"instruction", "first", "second", "fence"} - set(_names(self.user)):
            raise ValueError(f"`user` must contain {sorted(missing)}")
        return self

    def render(
        self, instruction: str, constraints: Sequence[str], first: str, second: str
    ) -> tuple[Message, ...]:
        """The conversation. The mark of the fences is a digest of all that stands between them: no
        text can hold it and close its own fence, and equal questions stay equal."""
        texts = [instruction, *constraints, first, second]
        mark = hashlib.sha256("\x1f".join(texts).encode(errors="replace")).hexdigest()[:16]
        fields = {
            "instruction": disarmed(instruction),
            "constraints": disarmed("\n".join(f"- {one}" for one in constraints) or "- none"),
            "first": disarmed(first),
            "second": disarmed(second),
            "fence": mark,
        }
        return (
            Message("system", Template(self.system).substitute(fields)),
            Message("user", Template(self.user).substitute(fields)),
        )


def load_pairwise_template(path: Path | None = None) -> PairwiseTemplate:
    """The template of a file; None is ours. Raises ``ConfigError`` naming file and fault."""
    return read_template(path or DEFAULT, PairwiseTemplate, "pairwise template")


def parse_choice(reply: str) -> str | None:
    """``A``, ``B`` or ``tie`` if the reply, behind what it thought, says that and nothing else in
    its first line; None if not. An article is no choice: ``A good answer`` has none.

    >>> [parse_choice(text) for text in ("B", "**A**.", "The better answer is: B", "Tie")]
    ['B', 'A', 'B', 'tie']
    >>> [parse_choice(text) for text in ("A good answer", "A or B", "", "a")]
    [None, None, None, None]
    """
    said = reply.rpartition(THINK_END)[2]
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    match = _CHOICE.fullmatch(lines[0]) if lines and len(lines[0]) <= MAX_CHOICE_CHARS else None
    if match is None:
        return None
    return match[1] if match[1] in ("A", "B") else "tie"


async def compare(
    ask: Ask,
    template: PairwiseTemplate,
    instruction: str,
    constraints: Sequence[str],
    first: str,
    second: str,
) -> Comparison:
    """Ask in both orders. Two equal answers are a tie, and nobody is asked.

    FIRST or SECOND if the same answer won both times, TIE if both replies say so; INVALID if one
    of them brings no label.
    """
    if first.strip() == second.strip():
        return Comparison(outcome=Outcome.TIE, choices=("tie", "tie"), detail="equal answers")
    choices: list[str | None] = []
    details: list[str] = []
    for one, other in ((first, second), (second, first)):
        try:
            reply = await ask(template.render(instruction, constraints, one, other))
        except UnjudgedError as error:
            choices.append(None)
            details.append(f"{error.cause}: {error}")
            continue
        choices.append(parse_choice(reply))
        if choices[-1] is None:
            details.append(f"no choice in the reply: {reply[:80]!r}")
    seen = (choices[0], choices[1])
    return Comparison(outcome=_agreed(*seen), choices=seen, detail="; ".join(details))


def _agreed(straight: str | None, swapped: str | None) -> Outcome:
    if straight is None or swapped is None:
        return Outcome.INVALID
    agreed = {("A", "B"): Outcome.FIRST, ("B", "A"): Outcome.SECOND, ("tie", "tie"): Outcome.TIE}
    return agreed.get((straight, swapped), Outcome.DISAGREE)


def _names(text: str) -> list[str]:
    return Template(text).get_identifiers()
