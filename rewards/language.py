"""Language consistency: question, chain and answer in one language, Chinese or not.

The rule of the public recipe: a text is Chinese if more than half of its letters are. Languages
that share a script are not told apart.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

from rewards.format import THINK_START, think_fault
from rewards.judging import Judgment, RuleVerifier
from safeladder.records import THINK_END, ScoreRequest


def chinese_share(text: str) -> float | None:
    """Share of Chinese characters among the letters of a text; None without letters.

    >>> chinese_share("你好 world")
    0.2857142857142857
    >>> chinese_share("2 + 2 = 4") is None
    True
    """
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return None
    return sum(unicodedata.name(c, "").startswith("CJK") for c in letters) / len(letters)


def is_chinese(text: str) -> bool:
    """Whether more than half of the letters are Chinese."""
    return (chinese_share(text) or 0.0) > 0.5


class LanguageConsistency(RuleVerifier):
    """1 if chain and answer keep the language of the question, else 0.

    ``threshold``: share of Chinese letters above which a text counts as Chinese. ``expected``:
    follow the ``question``, or the record's ``lang`` column. ``require_format``: multiply with the
    think/answer format, as published; turn it off for models without a chain. Parts without
    letters (formulas, numbers) agree with every language.
    """

    is_quick = True

    def __init__(
        self,
        *,
        principle: str,
        threshold: float = 0.5,
        expected: Literal["question", "lang"] = "question",
        require_format: bool = True,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        options = {"threshold": threshold, "expected": expected, "require_format": require_format}
        super().__init__(principle, options)
        self._threshold = threshold
        self._by_question = expected == "question"
        self._require_format = require_format

    def judge(self, request: ScoreRequest) -> Judgment:
        """Compare the parts; evidence lists what was found in each."""
        fault = think_fault(request.response) if self._require_format else None
        if fault is not None:
            return Judgment(0.0, fault)
        if not request.answer:
            return Judgment(0.0, "blank answer")
        chain = request.response.rpartition(THINK_END)[0].replace(THINK_START, "")
        wanted = self._language(request.question)
        if not self._by_question:
            wanted = "Chinese" if request.lang.lower().startswith("zh") else "other"
        found = {
            "wanted": wanted,
            "chain": self._language(chain),
            "answer": self._language(request.answer),
        }
        if len(set(found.values()) - {None}) > 1:
            evidence = ", ".join(f"{part} {name}" for part, name in found.items() if name)
            return Judgment(0.0, "mixed languages", evidence)
        return Judgment(1.0, "consistent")

    def _language(self, text: str) -> str | None:
        share = chinese_share(text)
        if share is None:
            return None
        return "Chinese" if share > self._threshold else "other"
