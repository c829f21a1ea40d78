"""What a constraint is: parameters that are checked when they are read, and a rule.

Owns nothing of any type. A missing or unknown parameter is an error: the published checkers draw
one at random instead.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field

from safeladder.config_section import Section

Reading = Literal["reference", "hardened"]
Relation = Literal["less than", "at least"]


class Constraint(Protocol):
    """One instruction. Its class is called with the ``kwargs`` of the row and raises ``ValueError``
    for wrong ones (a pydantic model does)."""

    def is_met(self, answer: str) -> bool:
        """Whether the visible answer, never blank, meets the instruction."""
        ...


class HardConstraint(Section):
    """A constraint of the vocabulary: its fields are the ``kwargs`` of IFEval's rows."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Whether a text that is not blank meets it."""
        raise NotImplementedError

    def slots(self) -> dict[str, Any]:
        """Values for the slots of its templates."""
        return self.model_dump()


def compare(count: int, relation: Relation, bound: int) -> bool:
    """``less than`` is strict; ``at least`` is not.

    >>> compare(3, "less than", 3), compare(3, "at least", 3)
    (False, True)
    """
    return count < bound if relation == "less than" else count >= bound


MAX_OPTIONAL = 8
_REPEATS = re.compile(r"\\.|(\)?)((?:[*+?]|\{\d*,?\d*\})+)", re.DOTALL)


def pattern(text: str, reading: Reading) -> str:
    """A keyword as it is searched for: an expression as published, plain text when hardened.

    Raises ``ValueError`` for an expression that repeats a group, or more than one thing: it can
    take for ever on some text, and nothing in the process can end it.

    >>> pattern("c++", "reference"), pattern("c++", "hardened")
    ('c++', 'c\\\\+\\\\+')
    """
    if reading == "hardened":
        return re.escape(text)
    found = [one for one in _REPEATS.finditer(text) if one[2]]
    repeats = [one for one in found if one[2].strip("?")]
    if (
        len(repeats) > 1
        or any(one[1] for one in repeats)
        or len(found) - len(repeats) > MAX_OPTIONAL
    ):
        raise ValueError(f"{text!r} repeats a group, or more than one thing: it can take for ever")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, Field(strict=True), AfterValidator(_not_blank)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=0, strict=True)]
PositiveCount = Annotated[int, Field(ge=1, strict=True)]
