"""Label vocabularies: how the text of a judge becomes one label.

Owns the strict parser: the label whose name stands earliest in the text wins, and a text without
a label has none. No number is ever read out of a judge's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


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
        name = r"[\s_-]+".join(re.escape(word) for word in label.split())
        match = re.search(rf"(?<!\w){name}(?!\w)", text, re.IGNORECASE)
        if match:
            found.append((match.start(), -len(label), label))
    return min(found)[2] if found else None


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
