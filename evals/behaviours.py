"""What a chain of thought does besides getting on: verification, backtracking, sub-goals.

Phrases stand for the behaviours that help reasoning to improve under RL (Gandhi et al. 2025, arXiv
2503.01307). That paper counts them with a judge: these shares compare sources with each other, not
with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BEHAVIOURS = {
    "verification": re.compile(
        r"\b(?:let(?:'s| me| us) (?:verify|check|double-check|confirm|test)|double-check|"
        r"to (?:verify|check|confirm)|(?:verify|check) (?:that|whether|if|this|our|my)|"
        r"sanity check|is that right|plugging (?:it |this )?back)\b|验证|检查一下|核对",
        re.I,
    ),
    "backtracking": re.compile(
        r"\bwait\b[,.!—-]|\b(?:on second thou?ghts?|let me (?:re-?think|reconsider|start over)|"
        r"that(?:'s| is| was) (?:wrong|not right|incorrect)|this (?:does not|doesn't|won't) work|"
        r"i made a mistake|go(?:ing)? back|try (?:another|a different) (?:way|approach))\b|"
        r"等一下|不对|重新考虑",
        re.I,
    ),
    "subgoals": re.compile(
        r"(?:^|\n)\s*(?:step \d|\d+[.)] )|\b(?:first(?:ly)?,|second(?:ly)?,|next,|finally,|"
        r"step by step|break (?:it|this|the \w+) (?:down|into)|(?:we|i) (?:first )?need to|"
        r"the (?:next|first) step)|首先|其次|接下来|第一步",
        re.I,
    ),
}
"""Behaviour → a phrase that shows it."""


def behaviours(text: str) -> frozenset[str]:
    """Which behaviours a text shows.

    >>> sorted(behaviours("First, we need the sum. Wait, that's wrong. Let me check: 3."))
    ['backtracking', 'subgoals', 'verification']
    """
    return frozenset(name for name, phrase in BEHAVIOURS.items() if phrase.search(text))


def behaviour_mix(texts: Iterable[str]) -> dict[str, float]:
    """Behaviour → share of the texts that show it; empty without texts."""
    shown = [behaviours(text) for text in texts]
    if not shown:
        return {}
    return {name: sum(name in one for one in shown) / len(shown) for name in BEHAVIOURS}
