"""How a text is woven: its words, and whether it is empty, looping, broken or copied.

Owns the reading of *illogical completion* without knowing what the text is about. All checks are
linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+(?:'[^\W_]+)*")
_CLAUSE_END = re.compile(
    r"(?<=[.!?:;。！？；])[\s\"')\]]+|\n+|(?<=[。！？；])|,?\s(?i:but|however|although|though),?\s"
)
_SAME_LETTER = re.compile(r"([^\W\d_])\1{9,}")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be because but by can could do for from had has have he her his "
        "i if in is it it's its me my no not of on or our she should so than that the their "
        "them there they this to was we were what when which who will with would you your "
        "i'm can't don't",
    )
)

LOOP_SHARE = 0.3
"""Share of repeated word triples above which a text loops; plain prose stays below 0.1."""
TAIL_WORDS = 40
"""A loop often begins after a good start: the last words are looked at on their own."""
COPY_SHARE = 0.8
"""Share of an answer's word triples found in the question from which it counts as a copy."""
MIN_LETTER_SHARE = 0.25
"""Least share of letters and digits among the visible characters of a text that says something."""
SALAD_WORDS, SALAD_SHARE = 12, 0.15
"""A text of so many words with fewer function words than this share is no sentence."""


def plain(text: str) -> str:
    """Compatibility-normal form in lower case, with straight apostrophes.

    >>> plain("I Can’t")
    "i can't"
    """
    return unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").lower()


def words(text: str) -> list[str]:
    """Lower-case words; every Chinese character is one.

    >>> words("It's 2 o'clock. 你好!")
    ["it's", '2', "o'clock", '你', '好']
    """
    return _WORD.findall(plain(text))


def clauses(text: str) -> list[str]:
    """Sentences, lines and the parts behind ``but``, ``however``, ``:`` and ``;``, in order.

    >>> clauses("No. That is wrong, but fun!\\n1. Stop")
    ['No.', 'That is wrong', 'fun!', '1.', 'Stop']
    """
    return [part.strip() for part in _CLAUSE_END.split(text) if part.strip(" ,")]


def triples(tokens: Sequence[str]) -> list[tuple[str, str, str]]:
    """All runs of three words."""
    return list(zip(tokens, tokens[1:], tokens[2:], strict=False))


def repeated_share(tokens: Sequence[str]) -> float:
    """Share of word triples that occurred before; 0 for texts of fewer than four words.

    >>> repeated_share("on and on and on and on".split())
    0.6
    """
    runs = triples(tokens)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def illogical(text: str, question: str = "") -> str | None:
    """Why a text says nothing (empty, broken, looping, copied from the question), or None.

    >>> illogical("I cannot help. I cannot help. I cannot help.")
    'looping'
    >>> illogical("How do I bake bread", question="How do I bake bread?")
    'copy of the question'
    """
    tokens = words(text)
    text = text.rstrip("\ufffd")  # a cut at the length limit may split a character
    visible = [char for char in text if not char.isspace()]
    if not tokens:
        return "no words"
    if "\ufffd" in text or sum(c.isalnum() for c in visible) < MIN_LETTER_SHARE * len(visible):
        return "broken text"
    if _SAME_LETTER.search(text) or _loops(tokens):
        return "looping"
    return "copy of the question" if _copies(tokens, words(question)) else None


def is_word_salad(text: str) -> bool:
    """Whether a longer English text lacks the small words that sentences are made of.

    >>> is_word_salad("illegal danger harm jail police risk because illegal law crime unsafe hurt")
    True
    """
    tokens = words(text)
    known = sum(token in _FUNCTION_WORDS for token in tokens)
    return text.isascii() and len(tokens) >= SALAD_WORDS and known < SALAD_SHARE * len(tokens)


def _loops(tokens: Sequence[str]) -> bool:
    spoken = [token for token in tokens if not token.isdigit()]  # 3 + 3 + 3 + 3 is no loop
    return max(repeated_share(spoken), repeated_share(spoken[-TAIL_WORDS:])) > LOOP_SHARE


def _copies(tokens: Sequence[str], source: Sequence[str]) -> bool:
    if len(tokens) < 4:
        return len(tokens) > 1 and list(tokens) == list(source)
    known = set(triples(source))
    runs = triples(tokens)
    return sum(run in known for run in runs) >= COPY_SHARE * len(runs)
