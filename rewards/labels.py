"""Label vocabularies: how the text of a judge becomes one label.

Owns four strict readings. A text without a label has none, and no number is ever read out of a
judge's text: a judge that answers in numbers has numbers as labels, and names one or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LEAD = r"[\W_]*(?:(?:the )?label(?: of the response)?(?: is)?[\W_]*)?"
_NUMBER = re.compile(
    r"[\s*_`\"'(\[]*(?:(?:the )?(?:score|grade|label)(?: is)?[\s*_`:=]*)?"
    r"([0-9]+(?:\.[0-9]+)?)"
    r"[\s*_`\"')\].]*",
    re.IGNORECASE,
)


def _name(label: str) -> str:
    """Expression for a label as whole words, joined by blanks, hyphens or underscores."""
    words = r"[\s_-]+".join(re.escape(word) for word in label.split())
    return rf"(?<!\w){words}(?!\w)"


def _leading(line: str, longest_first: Iterable[str]) -> str | None:
    return next((n for n in longest_first if re.match(_LEAD + _name(n), line, re.I)), None)


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
    leads = [_leading(line, names) for line in text.splitlines() if line.strip()]
    return leads[0] if leads and len(set(leads) - {None}) == 1 else None


def parse_majority(text: str, labels: Iterable[str], tie: str) -> str | None:
    """The label that most lines of ``text`` begin with; ``tie`` if several share the lead.

    A line that only mentions a label, such as a quotation of the response, has no vote.

    >>> parse_majority("other\\nhelpful\\nhelpful", ["helpful", "other"], tie="helpful")
    'helpful'
    >>> parse_majority("It says: reply helpful", ["helpful", "other"], tie="helpful") is None
    True
    """
    names = sorted(labels, key=len, reverse=True)
    named = [label for line in text.splitlines() if (label := _leading(line, names))]
    if not named:
        return None
    most = max(named.count(label) for label in names)
    leaders = [label for label in names if named.count(label) == most]
    return leaders[0] if len(leaders) == 1 else tie


def parse_number(text: str, labels: Iterable[str]) -> str | None:
    """The label of equal value if the whole text is one number, or None.

    No other number is rounded or cut to a label, and nothing may stand beside it.

    >>> parse_number("Score: 1.0", ["0", "0.5", "1"])
    '1'
    >>> [parse_number(text, ["0", "0.5", "1"]) for text in ("10", "0.7", "1/2", "-1", "1 or 0")]
    [None, None, None, None, None]
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    return next((label for label in labels if float(label) == float(match[1])), None)
