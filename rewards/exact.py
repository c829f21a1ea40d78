"""Answers that can be checked against a reference: exact text, exact number, symbolic mathematics.

Owns what counts as the same answer. A routed sample without a usable reference is a fault of the
data, so it is INVALID(error) and never 0. An answer in which nothing can be found scores 0: that
is the policy's own doing.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

from rewards.child import ChildDiedError, ChildWorker
from rewards.judging import Judgment, RuleVerifier, SampleVerifier, UnjudgedError
from rewards.texture import plain
from safeladder.records import InvalidCause, ScoreRequest

_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/[1-9]\d*)?")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_BOXED = "\\boxed{"
_UNPUNCTUATED = str.maketrans(string.punctuation, " " * len(string.punctuation))
_MATH_TAIL_CHARS = 8_000


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single blanks.

    >>> normalize_answer("  The Eiffel-Tower. ")
    'eiffel tower'
    """
    bare = plain(text).translate(_UNPUNCTUATED)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly: ``1,234.5``, ``-3``, ``2/4``.

    >>> last_number("7 - 5 = 2, so 1,000.50 in all")
    Fraction(2001, 2)
    >>> last_number("none") is None
    True
    """
    found = _NUMBER.findall(text)
    return Fraction(found[-1].replace(",", "")) if found else None


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, braces balanced, or None.

    >>> last_boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    """
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 0
    for position in range(start + len(_BOXED) - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len(_BOXED) : position]
    return None


def references_of(request: ScoreRequest, aliases: str) -> list[str]:
    """The reference and the list of strings in ``meta[aliases]``.

    Raises ``UnjudgedError`` (error) if there is none, or if the aliases are not strings.
    """
    more = request.meta.get(aliases, ())
    if not isinstance(more, Sequence) or isinstance(more, str):
        raise UnjudgedError(InvalidCause.ERROR, f"meta.{aliases} is not a list of strings")
    found = [r for r in (request.reference, *more) if isinstance(r, str) and r.strip()]
    if not found:
        raise UnjudgedError(InvalidCause.ERROR, "the record has no reference to compare with")
    return found


class ExactAnswer(RuleVerifier):
    """1 if the visible answer equals the reference or one of its aliases, else 0.

    ``match``: ``number`` compares the last number; ``text`` the whole normalized answer;
    ``phrase`` looks for the reference as whole words in an answer of at most ``max_words`` words
    (longer ones could list every candidate); ``auto`` is ``number`` for numeric references, else
    ``phrase``. A boxed answer stands for the whole. ``aliases`` names the ``meta`` column with
    further references.
    """

    is_quick = True

    def __init__(
        self,
        *,
        principle: str,
        match: Literal["auto", "number", "text", "phrase"] = "auto",
        max_words: int = 30,
        aliases: str = "aliases",
    ) -> None:
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {max_words}")
        super().__init__(principle, {"match": match, "max_words": max_words, "aliases": aliases})
        self._match = match
        self._max_words = max_words
        self._aliases = aliases

    def judge(self, request: ScoreRequest) -> Judgment:
        """Compare the answer with each reference; evidence is what was read as the answer."""
        references = references_of(request, self._aliases)
        boxed = last_boxed(request.answer)
        answer = request.answer if boxed is None else boxed
        if any(self._equal(reference, answer) for reference in references):
            return Judgment(1.0, "correct", answer)
        return Judgment(0.0, "wrong", answer)

    def _equal(self, reference: str, answer: str) -> bool:
        numeric = _NUMBER.fullmatch(reference.strip()) is not None
        if self._match == "number" or (self._match == "auto" and numeric):
            wanted = last_number(reference)
            if wanted is None:
                raise UnjudgedError(InvalidCause.ERROR, f"reference {reference!r} has no number")
            return last_number(answer) == wanted
        wanted_text, found = normalize_answer(reference), normalize_answer(answer)
        if self._match == "text":
            return found == wanted_text
        return len(found.split()) <= self._max_words and f" {wanted_text} " in f" {found} "


class MathAnswer(SampleVerifier):
    """1 if the visible answer equals the reference symbolically (math-verify), else 0.

    Runs in one warm child process that is killed and replaced when a sample takes longer than
    ``timeout_s``: math-verify's own time limits need the main thread of a process, and without
    them nothing bounds it. A killed sample is INVALID(timeout). The reference may be plain text or
    LaTeX. Of a long answer only the last 8,000 characters are read.
    """

    def __init__(
        self, *, principle: str, timeout_s: float = 5.0, start_timeout_s: float = 60.0
    ) -> None:
        super().__init__(principle, {"timeout_s": timeout_s})
        self._timeout_s = timeout_s
        worker = Path(__file__).with_name("math_worker.py")
        self.child = ChildWorker([sys.executable, "-P", str(worker)], start_timeout_s)

    async def start(self) -> None:
        """Start the child. Raises ``VerifierUnavailableError`` if math-verify does not load."""
        await self.child.start()

    async def close(self) -> None:
        """Kill the child."""
        await self.child.close()

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Ask the child; evidence is what it read as the answer."""
        if request.reference is None or not request.reference.strip():
            raise UnjudgedError(InvalidCause.ERROR, "the record has no reference to compare with")
        job = {"reference": request.reference, "answer": request.answer[-_MATH_TAIL_CHARS:]}
        try:
            reply = await self.child.ask(job, self._timeout_s)
        except TimeoutError:
            detail = f"not decided within {self._timeout_s:g} s; the child was killed"
            raise UnjudgedError(InvalidCause.TIMEOUT, detail) from None
        except ChildDiedError as error:
            raise UnjudgedError(InvalidCause.ERROR, str(error)) from error
        if "error" in reply:
            raise UnjudgedError(InvalidCause.ERROR, str(reply["error"]))
        correct = reply["correct"] is True
        return Judgment(float(correct), "correct" if correct else "wrong", reply.get("read"))
