"""Form before content: the think/answer contract and stopping in time.

Owns two rules that read the response only, never the prompt: the public recipe scored the decoded
prompt as well, whose system turn holds a complete example, so its format reward was always 1.
"""

from __future__ import annotations

from rewards.judging import Judgment, RuleVerifier
from safeladder.records import THINK_END, ScoreRequest

THINK_START = "<think>"
_TAGS = (THINK_START, THINK_END)


def think_fault(response: str, opened_by_prompt: bool = False) -> str | None:
    """What is wrong with the form of a response, or None.

    Right is: one ``<think>``, reasoning, one ``</think>``, an answer; nothing before the block,
    which no verifier of the answer would see. The published expression
    ``.*<think>.+?</think>\\s*\\S+`` also lets in blank thinking and several blocks.

    >>> think_fault("<think>2 and 2</think> 4") is None
    True
    >>> think_fault("<think> </think> 4")
    'blank reasoning'
    """
    text = THINK_START + response if opened_by_prompt else response
    places = _find_tags(text)
    is_end = [text.startswith(THINK_END, place) for place in places]
    if len(places) != 2 or is_end[0] is is_end[1]:
        return "not exactly one think block"
    if is_end[0]:
        return "think block closed before it opens"
    start, end = places
    if not _is_blank(text[:start]):
        return "text before the think block"
    if _is_blank(text[start + len(THINK_START) : end]):
        return "blank reasoning"
    return "blank answer" if _is_blank(text[end + len(THINK_END) :]) else None


def _find_tags(text: str) -> list[int]:
    """Where the tags begin. A search for one character is many times faster than one for a word
    or an expression, and few characters of an answer are ``<``."""
    found = []
    place = text.find("<")
    while place >= 0:
        if text.startswith(_TAGS, place):
            found.append(place)
        place = text.find("<", place + 1)
    return found


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


class ThinkFormat(RuleVerifier):
    """1 for ``<think>reasoning</think> answer`` in the strict form of ``think_fault``, else 0.

    ``opened_by_prompt``: the chat template already writes ``<think>``, so responses begin inside.
    """

    is_quick = True

    def __init__(self, *, principle: str, opened_by_prompt: bool = False) -> None:
        super().__init__(principle, {"opened_by_prompt": opened_by_prompt})
        self._opened_by_prompt = opened_by_prompt

    def judge(self, request: ScoreRequest) -> Judgment:
        """Score the response's form; the label names the fault."""
        fault = think_fault(request.response, self._opened_by_prompt)
        return Judgment(1.0, "well-formed") if fault is None else Judgment(0.0, fault)


class StopWithinLimit(RuleVerifier):
    """1 if the model ended by itself with a visible answer, within ``max_tokens`` if given."""

    is_quick = True

    def __init__(self, *, principle: str, max_tokens: int | None = None) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        super().__init__(principle, {"max_tokens": max_tokens})
        self._max_tokens = max_tokens

    def judge(self, request: ScoreRequest) -> Judgment:
        """Score the ending; the label is ``stopped``, ``cut off``, ``too long`` or ``blank``."""
        if request.finish_reason != "stop":
            return Judgment(0.0, "cut off", f"{request.num_tokens} tokens")
        if not request.answer:
            return Judgment(0.0, "blank")
        if self._max_tokens is not None and request.num_tokens > self._max_tokens:
            return Judgment(0.0, "too long", f"{request.num_tokens} > {self._max_tokens} tokens")
        return Judgment(1.0, "stopped", f"{request.num_tokens} tokens")
