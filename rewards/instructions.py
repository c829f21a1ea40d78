"""Instruction following: constraints of a request that a program can check.

Owns the port of a constraint, five of them under IFEval's ids, and the share that an answer meets.
The rules are IFEval's (Zhou et al. 2023, arXiv 2311.07911) except that keywords are plain text, not
expressions: data must not bring programs with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, NonNegativeInt, ValidationError

from rewards.building import load_object
from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from safeladder.config import Section
from safeladder.records import InvalidCause, ScoreRequest

MAX_CONSTRAINTS = 64
Relation = Literal["less than", "at least"]
Keywords = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Constraint(Protocol):
    """One instruction. Its class is called with the ``kwargs`` of the row and raises ``ValueError``
    for wrong ones (a pydantic model does)."""

    def is_met(self, answer: str) -> bool:
        """Whether the visible answer, never blank, meets the instruction."""
        ...


class WordCount(Section):
    """``length_constraints:number_words``: runs of letters, digits and underscores."""

    relation: Relation
    num_words: NonNegativeInt

    def is_met(self, answer: str) -> bool:
        """Count and compare."""
        count = len(re.findall(r"\w+", answer))
        return count < self.num_words if self.relation == "less than" else count >= self.num_words


class KeywordsPresent(Section):
    """``keywords:existence``: every keyword occurs, in any case, also inside a word."""

    keywords: Keywords

    def is_met(self, answer: str) -> bool:
        """Look for each."""
        return all(keyword.casefold() in answer.casefold() for keyword in self.keywords)


class KeywordsAbsent(Section):
    """``keywords:forbidden_words``: no keyword occurs as a whole word, in any case."""

    forbidden_words: Keywords

    def is_met(self, answer: str) -> bool:
        """Look for each."""
        return not any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE)
            for word in self.forbidden_words
        )


class BulletCount(Section):
    """``detectable_format:number_bullet_lists``: exactly so many lines that begin with ``* `` or
    ``-``."""

    num_bullets: NonNegativeInt

    def is_met(self, answer: str) -> bool:
        """Count lines."""
        return len(re.findall(r"^\s*(?:\*[^*\n]|-)", answer, re.MULTILINE)) == self.num_bullets


class JsonOnly(Section):
    """``detectable_format:json_format``: the answer, without a code fence, is JSON."""

    def is_met(self, answer: str) -> bool:
        """Parse it."""
        text = re.sub(r"^```(?:json)?\s*\n?|\n?```$", "", answer.strip(), flags=re.IGNORECASE)
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True


CONSTRAINTS: Mapping[str, type[Constraint]] = MappingProxyType(
    {
        "length_constraints:number_words": WordCount,
        "keywords:existence": KeywordsPresent,
        "keywords:forbidden_words": KeywordsAbsent,
        "detectable_format:number_bullet_lists": BulletCount,
        "detectable_format:json_format": JsonOnly,
    }
)
"""Id → its class."""


class InstructionRules(RuleVerifier):
    """The share of a row's constraints that the visible answer meets; a blank answer meets none.

    The row's ``reference`` is a JSON list of ``{"id": ..., "kwargs": {...}}``; ``source: meta``
    reads the list from the column ``meta_key`` instead. A row without constraints, an unknown id or
    wrong kwargs is INVALID(malformed), however many of the others are met. ``all_or_nothing``: 1
    only if all are met. ``extra``: further ids → ``module:Class`` (port: ``Constraint``).
    """

    def __init__(
        self,
        *,
        principle: str,
        source: Literal["reference", "meta"] = "reference",
        meta_key: str = "constraints",
        all_or_nothing: bool = False,
        extra: dict[str, str] | None = None,
    ) -> None:
        options = {
            "source": [source, meta_key],
            "all_or_nothing": all_or_nothing,
            "extra": extra or {},
        }
        super().__init__(principle, options)
        where = f"principles.{principle}.options.extra"
        self._known = dict(CONSTRAINTS) | {
            name: load_object(path, f"{where}.{name}") for name, path in (extra or {}).items()
        }
        self._meta_key = meta_key if source == "meta" else None
        self._all_or_nothing = all_or_nothing

    def judge(self, request: ScoreRequest) -> Judgment:
        """Check each; evidence names those that are not met."""
        constraints = self._constraints(request)
        answer = request.answer
        missed = [name for name, one in constraints if not (answer and one.is_met(answer))]
        share = 1 - len(missed) / len(constraints)
        if self._all_or_nothing:
            share = float(not missed)
        label = f"{len(constraints) - len(missed)} of {len(constraints)}"
        return Judgment(share, label, ", ".join(missed) or None)

    def _constraints(self, request: ScoreRequest) -> Sequence[tuple[str, Constraint]]:
        listed: Any = request.reference
        if self._meta_key is not None:
            listed = request.meta.get(self._meta_key)
        if isinstance(listed, str):
            try:
                listed = json.loads(listed)
            except ValueError as error:
                raise _malformed(f"the constraint list is not JSON: {error}") from None
        if not isinstance(listed, list | tuple) or not 0 < len(listed) <= MAX_CONSTRAINTS:
            raise _malformed(f"expected a list of 1 to {MAX_CONSTRAINTS} constraints")
        return [self._constraint(entry) for entry in listed]

    def _constraint(self, entry: Any) -> tuple[str, Constraint]:
        if not isinstance(entry, Mapping) or not {"id"} <= set(entry) <= {"id", "kwargs"}:
            raise _malformed(f"a constraint is {{id, kwargs}}, got {entry!r}")
        name, kwargs = entry["id"], entry.get("kwargs") or {}
        if not isinstance(name, str) or name not in self._known:
            raise _malformed(f"unknown constraint {name!r}; known: {sorted(self._known)}")
        try:
            given = {key: value for key, value in kwargs.items() if value is not None}
            return name, self._known[name](**given)
        except ValidationError as error:
            first = error.errors()[0]
            raise _malformed(f"{name}: {first['loc']}: {first['msg']}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise _malformed(f"{name}: {error}") from None


def _malformed(detail: str) -> UnjudgedError:
    return UnjudgedError(InvalidCause.MALFORMED, detail)
