"""All types by id, hard and soft, and which of them exclude each other.

Ids and conflicts of the hard types are IFEval's (Apache-2.0, Google); the soft types are those of
FollowSoftConstraints (arXiv 2501.04945). A soft constraint is text that a judge reads: it has no
rule, and excludes only its own type and what excludes nearly everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from rewards.constraints import counts, layout
from rewards.constraints.port import HardConstraint

HARD: Mapping[str, type[HardConstraint]] = MappingProxyType(
    {
        "length_constraints:number_sentences": counts.NumberOfSentences,
        "length_constraints:number_words": counts.NumberOfWords,
        "length_constraints:number_paragraphs": counts.NumberOfParagraphs,
        "length_constraints:nth_paragraph_first_word": counts.NthParagraphFirstWord,
        "keywords:existence": counts.KeywordExistence,
        "keywords:frequency": counts.KeywordFrequency,
        "keywords:forbidden_words": counts.ForbiddenWords,
        "keywords:letter_frequency": counts.LetterFrequency,
        "language:response_language": layout.ResponseLanguage,
        "detectable_format:number_bullet_lists": counts.NumberOfBullets,
        "detectable_format:number_highlighted_sections": counts.NumberOfHighlights,
        "detectable_format:multiple_sections": counts.NumberOfSections,
        "detectable_format:title": layout.Title,
        "detectable_format:json_format": layout.JsonFormat,
        "detectable_format:constrained_response": layout.ConstrainedResponse,
        "detectable_content:number_placeholders": counts.NumberOfPlaceholders,
        "detectable_content:postscript": layout.Postscript,
        "change_case:capital_word_frequency": counts.CapitalWordFrequency,
        "change_case:english_capital": layout.EnglishCapital,
        "change_case:english_lowercase": layout.EnglishLowercase,
        "startend:end_checker": layout.EndPhrase,
        "startend:quotation": layout.Quotation,
        "punctuation:no_comma": layout.NoComma,
        "combination:two_responses": layout.TwoResponses,
        "combination:repeat_prompt": layout.RepeatPrompt,
    }
)
"""Id → its class."""

SOFT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "soft_content:open_ended": (
            "add a subtask to the request",
            "narrow the request to one part of its topic",
            "raise the bar that the answer has to meet",
            "limit the resources that may be used",
            "name an element that the answer has to hold",
            "give the sequence in which things have to be told",
        ),
        "soft_content:language": (
            "set the level of the language",
            "say how long or short sentences should be",
            "name a field whose words have to be used",
            "prescribe how the answer is built",
        ),
        "situation:suggestion": (
            "describe the circumstances of the one who asks for advice",
            "name the specific problem behind the request",
            "make the matter urgent",
            "rule out an obvious option",
            "let one step depend on another",
            "say what matters most to the one who asks",
        ),
        "situation:role_play": (
            "give the one who answers a role",
            "describe the place in which the role speaks",
            "add a conflict between the role and someone else",
            "limit what the role may do",
            "give the role a goal",
            "set a time in which the role lives",
        ),
        "situation:story_generation": (
            "name the archetype of the main character",
            "name a turn that the plot has to take",
            "put a moral dilemma into the story",
        ),
        "style:open_ended": (
            "ask for a tone",
            "ask for the manner of a known author",
            "ask for a contradiction that stays unresolved",
            "ask for words that can be read in two ways",
            "ask for humour of a certain kind",
        ),
    }
)
"""Id → what a writer may be asked for, in words that finish "Change the request: …"."""

_LANGUAGE = "language:response_language"
_FORMAT = "detectable_format:"
_CASE = "change_case:"
_LENGTH = "length_constraints:"
_KEYWORDS = "keywords:"

_DECLARED: Mapping[str, Iterable[str]] = {
    _LANGUAGE: (
        _FORMAT + "multiple_sections",
        _KEYWORDS + "existence",
        _KEYWORDS + "frequency",
        _KEYWORDS + "forbidden_words",
        "startend:end_checker",
        _CASE + "english_capital",
        _CASE + "english_lowercase",
    ),
    _LENGTH + "number_paragraphs": (
        _LENGTH + "nth_paragraph_first_word",
        _LENGTH + "number_sentences",
    ),
    _FORMAT + "multiple_sections": (_FORMAT + "number_highlighted_sections",),
    _CASE + "capital_word_frequency": (_CASE + "english_lowercase", _CASE + "english_capital"),
    _CASE + "english_lowercase": (_CASE + "english_capital",),
    "startend:quotation": (_FORMAT + "title",),
}
_ALL_BUT: Mapping[str, frozenset[str]] = {
    _FORMAT + "constrained_response": frozenset(),
    _FORMAT + "json_format": frozenset({_KEYWORDS + "forbidden_words", _KEYWORDS + "existence"}),
    "combination:two_responses": frozenset(
        {
            _KEYWORDS + "forbidden_words",
            _KEYWORDS + "existence",
            _LANGUAGE,
            _FORMAT + "title",
            "punctuation:no_comma",
        }
    ),
    "combination:repeat_prompt": frozenset(
        {_KEYWORDS + "existence", _FORMAT + "title", "punctuation:no_comma"}
    ),
}


def _closure() -> Mapping[str, frozenset[str]]:
    """The symmetric closure: who excludes is excluded, and every type excludes itself."""
    ids = (*HARD, *SOFT)
    table = {name: {name} for name in ids}
    pairs = [(name, other) for name, others in _DECLARED.items() for other in others]
    pairs += [
        (name, other) for name, kept in _ALL_BUT.items() for other in ids if other not in kept
    ]
    for name, other in pairs:
        table[name].add(other)
        table[other].add(name)
    return MappingProxyType({name: frozenset(others) for name, others in table.items()})


CONFLICTS = _closure()
"""Id → ids that may not stand beside it, itself included."""


def conflicting_pair(ids: Iterable[str]) -> tuple[str, str] | None:
    """The first two of some ids that exclude each other; a type excludes its own repetition.

    >>> conflicting_pair(["punctuation:no_comma", "startend:quotation", "detectable_format:title"])
    ('startend:quotation', 'detectable_format:title')
    """
    seen: list[str] = []
    for name in ids:
        for other in seen:
            if other in CONFLICTS[name]:
                return other, name
        seen.append(name)
    return None
