"""FollowBench's items that a rule scores, not a judge (arXiv 2310.20410, Apache-2.0).

The rules belong to single examples, and some of their words stand nowhere in the data. A level is
scored as a whole: it passes if the rules of all levels up to it do. They are the published rules
with their quirks: sentences are what stands between ``.``, ``!`` and ``?``, words what stands
between blanks. A blank answer passes none.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Sequence

Rule = Callable[[str], bool]


def scored_by_rule(file: str, source: str, example_id: int) -> bool:
    """Whether an item is; ``file`` is the kind of its constraints, such as ``format``."""
    return (
        source in _BY_TARGET or source in _BY_LEVEL or (file == "format" and example_id in _FORMAT)
    )


def passes_level(
    file: str, source: str, example_id: int, level: int, target: str, answer: str
) -> bool:
    """Whether an answer satisfies all constraints of a level from 1 to 5. Raises ``KeyError`` for
    an item that no rule scores."""
    if not answer.strip():
        return False
    if source in _BY_TARGET:
        return _BY_TARGET[source](answer, target)
    if file == "format" and example_id in _FORMAT:
        return _FORMAT[example_id](answer, level)
    return all(rule(answer) for rule in _BY_LEVEL[source][:level])


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"[.!?]", text) if part]


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


def _nth_has(number: int, word: str) -> Rule:
    return lambda text: len(_sentences(text)) >= number and _has(_sentences(text)[number - 1], word)


def _num_sentences(number: int) -> Rule:
    return lambda text: len(_sentences(text)) == number


def _num_words(fits: Callable[[int], bool]) -> Rule:
    return lambda text: fits(len(text.split(" ")))


def _contains(word: str) -> Rule:
    return lambda text: _has(text, word)


def _lacks(word: str) -> Rule:
    return lambda text: not _has(text, word)


def _last(expression: str) -> Callable[[str, str], bool]:
    """The last match is the target."""

    def rule(answer: str, target: str) -> bool:
        found = re.findall(expression, answer)
        return bool(found) and found[-1] == target

    return rule


def _num_marks(text: str) -> int:
    return sum(char in string.punctuation for char in text)


def _is_one_of(answer: str, target: str) -> bool:
    return answer in ast.literal_eval(target)  # a list of the data file, never a judge's text


_BY_TARGET: dict[str, Callable[[str, str], bool]] = {
    "E2E": lambda answer, target: answer == target,
    "text_editing": lambda answer, target: answer == target,
    "WIKIEVENTS": lambda answer, target: set(answer.split("\n")) <= set(target.split("\n")),
    "CONLL2003": _is_one_of,
    "BBH_logical": _last(r"\([A-Z]\)"),
    "BBH_time": _last(r"\d{2}/\d{2}/\d{4}"),
    "self_made_space": lambda answer, target: target in answer,
    "gsm_8k": _last(r"\$\d+"),
}
"""Source → rule for an answer and the level's target."""

_CNN_WORDS: Sequence[Rule] = (_nth_has(1, "Potter"), _nth_has(2, "actor"), _nth_has(3, "films"))

_BY_LEVEL: dict[str, tuple[Rule, Rule, Rule, Rule, Rule]] = {
    "cnn_dailymail": (
        _num_sentences(3),
        lambda text: all(len(part.split()) < 15 for part in _sentences(text)),
        lambda text: all(rule(text) for rule in _CNN_WORDS),
        lambda text: not _nth_has(2, "lavish")(text),
        lambda text: re.search(r"\b(has|have)\s+\w+", _sentences(text)[2]) is not None,
    ),
    "xsum": (
        _num_sentences(1),
        _num_words(lambda count: count < 20),
        _lacks("Newton Stewart"),
        lambda text: re.search(r"\b(am|is|are)\s+\w+ing\b", text) is not None,
        _contains("operation"),
    ),
    "samsum": (
        _num_sentences(1),
        _num_words(lambda count: count < 15),
        _contains("stuff"),
        lambda text: "procrast" not in text.lower(),
        lambda text: _num_marks(text) == 1,
    ),
    "gigaword": (
        _num_words(lambda count: count == 8),
        lambda text: _num_marks(text) == 0,
        str.islower,
        _lacks("bus"),
        _contains("in"),
    ),
    "arxiv": (
        _num_sentences(1),
        _num_words(lambda count: count <= 20),
        lambda text: text.startswith("We"),
        _contains("activations"),
        _lacks("transformer"),
    ),
}
"""Source → what each level adds."""


def _suggestions(text: str, level: int) -> bool:
    """Example 22: three short paragraphs of long sentences, numbered; in the end a fourth. As it is
    published, levels 4 and 5 cannot be passed: the ``1`` of ``1.`` is a sentence of one word."""
    parts = text.split("\n\n")
    rules: tuple[Callable[[], bool], ...] = (
        lambda: len(parts) == (4 if level == 5 else 3),
        lambda: all(len(_sentences(part)) < 3 for part in parts[:3]),
        lambda: all(len(part.split()) > 20 for part in _sentences(text)),
        lambda: all(re.match(r"\d+\.", p.lstrip()) is not None for p in parts if p.strip()),
        lambda: text.endswith("Those are suggestions"),
    )
    return all(rule() for rule in rules[:level])


def _five_points(text: str, level: int) -> bool:
    """Example 30: five bold points, each a keyword and little more."""
    sentences = re.split(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=\.|\?)\s", text)
    points = [one for one in sentences if any(f"{number}." in one for number in range(1, 6))]
    rules = (
        "**" in text,
        len(re.findall(r"\*\*[\d].+?:", text)) == 5,
        all(len(one.split(".")) < 3 for one in points),
        all(10 <= len(one.split()) <= 15 for one in sentences),
        not any(word.endswith("-ly") for word in text.split()),
    )
    return all(rules[:level])


_FORMAT: dict[int, Callable[[str, int], bool]] = {22: _suggestions, 30: _five_points}
"""Example of ``format`` → rule for an answer and a level."""
