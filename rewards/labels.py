"""Label vocabularies: how the text of a judge becomes one label.

Owns three strict readings. A text without a label has none, and no number is ever read out of a
judge's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LEAD = r"[\W_]*(?:(?:the )?label(?: of the response)?(?: is)?[\W_]*)?"


def _name(label: str) -> str:
    """Expression for a label as whole words, joined by blanks, hyphens or underscores."""
    words = r"[\s_-]+".join(re.escape(word) for word in label.split())
    return rf"(?<!\w){words}(?!\w)"


def parse_label(text: str, labels: Iterable[str]) -> str | None:
    """The label named earliest in ``text``, or None. At one position the longest name wins.

    Case does not matter; words of a label may be joined by blanks, ``-`` or ``_``; a name counts
    as whole words only, so ``safe`` is not found in ``unsafe``.

    >>> parse_label("Unsafe. It is not safe.", ["safe", "unsafe"])
    'unsafe'
    >>> parse_label("no idea", ["safe", "unsafe"]) is None
    True
    """
    found = []
    for label in labels:
        match = re.search(_name(label), text, re.IGNORECASE)
        if match:
            found.append((match.start(), -len(label), label))
    return min(found)[2] if found else None


def parse_leading(text: str, labels: Iterable[str]) -> str | None:
    """The label that the text begins with, or None. ``Label:`` or ``The label is`` may go before.

    A judge that repeats its vocabulary names every label and gives none, so the text has none
    either if another line begins with another label.

    >>> parse_leading("**Unsafe**, because it is not safe", ["safe", "unsafe"])
    'unsafe'
    >>> parse_leading("- safe\\n- unsafe", ["safe", "unsafe"]) is None
    True
    >>> parse_leading("One of: safe, unsafe", ["safe", "unsafe"]) is None
    True
    """
    names = sorted(labels, key=len, reverse=True)
    lines = [line for line in text.splitlines() if line.strip()]
    leads = [
        next((n for n in names if re.match(_LEAD + _name(n), line, re.IGNORECASE)), None)
        for line in lines
    ]
    return leads[0] if leads and len(set(leads) - {None}) == 1 else None


def parse_majority(text: str, labels: Iterable[str], tie: str) -> str | None:
    """The label named on most lines of ``text``; ``tie`` if several share the lead.

    >>> parse_majority("other\\nhelpful\\nhelpful", ["helpful", "other"], tie="helpful")
    'helpful'
    """
    names = list(labels)
    named = [label for line in text.splitlines() if (label := parse_label(line, names))]
    if not named:
        return None
    most = max(named.count(label) for label in names)
    leaders = [label for label in names if named.count(label) == most]
    return leaders[0] if len(leaders) == 1 else tie
