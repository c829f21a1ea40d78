"""Visual focus as a lexical rule: does the reasoning say what can be seen in the image?

Owns one expression and a word count. It cannot know whether what is described is there: the judge
template ``visual_focus`` reads the image as well. The published recipe names this term without a
formula; give it a small weight.
"""

from __future__ import annotations

import re

from rewards.format import THINK_START, think_fault
from rewards.judging import Judgment, NotApplicableError, RuleVerifier
from rewards.texture import words
from safeladder.records import THINK_END, ScoreRequest

_IMAGE = r"(?:image|picture|photo(?:graph)?|figure|diagram|chart|graph|screenshot|drawing|scene)"
_LOOKS = re.compile(
    rf"\b(?:in|on|from) the {_IMAGE}\b"
    rf"|\b(?:the|this) {_IMAGE} (?:shows?|depicts?|displays?|contains?|has|features?)\b"
    rf"|\b(?:i|we) (?:can )?see\b|\b(?:is|are) (?:visible|shown|depicted|labell?ed)\b"
    rf"|\blook(?:ing|s)? at the {_IMAGE}\b"
    r"|图(?:片|像|中|里|上)|照片|画面",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s*|\n+")
_EMPTY = frozenset(
    re.findall(
        r"\S+",
        "a an and any at can from has have i image in is it look looking me must of on picture "
        "photo see shown shows so that the there this to us visible we",
    )
)


class VisualFocus(RuleVerifier):
    """1 if a sentence of the chain turns to the image and says at least ``min_words`` words about
    it that are not in the question, else 0.

    A response with a malformed chain scores 0, so that the term is never earned without the
    format. Samples without an image are NOT_APPLICABLE.
    """

    is_quick = True

    def __init__(self, *, principle: str, min_words: int = 2) -> None:
        if min_words < 1:
            raise ValueError(f"min_words must be at least 1, got {min_words}")
        super().__init__(principle, {"min_words": min_words})
        self._min_words = min_words

    def judge(self, request: ScoreRequest) -> Judgment:
        """Evidence is the sentence that looks at the image."""
        if not request.images:
            raise NotApplicableError("the sample has no image")
        fault = think_fault(request.response)
        if fault is not None:
            return Judgment(0.0, fault)
        chain = request.response.partition(THINK_END)[0].replace(THINK_START, "")
        asked = set(words(request.question))
        for sentence in _SENTENCE_END.split(chain):
            told = set(words(_LOOKS.sub(" ", sentence))) - _EMPTY - asked
            if _LOOKS.search(sentence) and len(told) >= self._min_words:
                return Judgment(1.0, "yes", sentence)
        return Judgment(0.0, "no")
