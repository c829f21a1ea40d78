"""Values for the parameters of each hard type, drawn so that a small model can meet them.

Ranges are those of FollowSoftConstraints (arXiv 2501.04945) where they are known: 10 to 25 words
for "at least", 30 to 100 for "less than", 22 languages, 3 to 8 letters, 2 to 4 bullets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Any

WORDS = (
    "window", "harbor", "copper", "morning", "ladder", "garden", "engine", "winter", "basket",
    "travel", "bridge", "silver", "forest", "letter", "market", "summer", "candle", "corner",
    "island", "kitchen", "lesson", "mirror", "needle", "orange", "pencil", "quarter", "river",
    "season", "temple", "umbrella", "valley", "weather", "yellow", "anchor", "blanket", "circle",
    "dinner", "effort", "feather", "guitar", "holiday", "insect", "jacket", "kettle", "library",
    "magnet", "network", "object", "palace", "rabbit", "shadow", "ticket", "victory", "whisper",
    "autumn", "balance", "captain", "distance", "evening", "fabric", "gravel", "honey", "journey",
    "lantern",
)  # fmt: skip
"""Plain nouns for keywords, first words and forbidden words."""
ENDINGS = (
    "That is all.",
    "I hope this helps.",
    "Let me know what you think.",
    "Thank you for asking.",
    "The rest is up to you.",
)
RESPONSE_LANGUAGES = (
    "ar", "bg", "bn", "de", "es", "fa", "fi", "fr", "gu", "hi", "it", "kn", "ko", "mr", "ne", "pt",
    "ru", "sw", "ta", "te", "th", "vi",
)  # fmt: skip
_BOTH = ("less than", "at least")


def _relation(rng: Random) -> str:
    return rng.choice(_BOTH)


def _sentences(rng: Random, seed: str) -> dict[str, Any]:
    relation = _relation(rng)
    low, high = (3, 8) if relation == "less than" else (2, 6)
    return {"relation": relation, "num_sentences": rng.randint(low, high)}


def _words(rng: Random, seed: str) -> dict[str, Any]:
    relation = _relation(rng)
    low, high = (30, 100) if relation == "less than" else (10, 25)
    return {"relation": relation, "num_words": rng.randint(low, high)}


def _nth_paragraph(rng: Random, seed: str) -> dict[str, Any]:
    count = rng.randint(2, 4)
    return {
        "num_paragraphs": count,
        "nth_paragraph": rng.randint(1, count),
        "first_word": rng.choice(WORDS),
    }


def _frequency(rng: Random, seed: str) -> dict[str, Any]:
    return {
        "keyword": rng.choice(WORDS),
        "frequency": rng.randint(1, 3),
        "relation": _relation(rng),
    }


def _letters(rng: Random, seed: str) -> dict[str, Any]:
    return {
        "letter": rng.choice("abcdefghijklmnopqrstuvwxyz"),
        "let_frequency": rng.randint(3, 8),
        "let_relation": _relation(rng),
    }


def _capitals(rng: Random, seed: str) -> dict[str, Any]:
    return {"capital_frequency": rng.randint(2, 5), "capital_relation": _relation(rng)}


def _some_words(rng: Random) -> list[str]:
    return rng.sample(WORDS, rng.randint(1, 3))


VALUES: Mapping[str, Callable[[Random, str], dict[str, Any]]] = MappingProxyType(
    {
        "length_constraints:number_sentences": _sentences,
        "length_constraints:number_words": _words,
        "length_constraints:number_paragraphs": lambda rng, _: {
            "num_paragraphs": rng.randint(2, 4)
        },
        "length_constraints:nth_paragraph_first_word": _nth_paragraph,
        "keywords:existence": lambda rng, _: {"keywords": _some_words(rng)},
        "keywords:frequency": _frequency,
        "keywords:forbidden_words": lambda rng, _: {"forbidden_words": _some_words(rng)},
        "keywords:letter_frequency": _letters,
        "language:response_language": lambda rng, _: {"language": rng.choice(RESPONSE_LANGUAGES)},
        "detectable_format:number_bullet_lists": lambda rng, _: {"num_bullets": rng.randint(2, 4)},
        "detectable_format:number_highlighted_sections": lambda rng, _: {
            "num_highlights": rng.randint(1, 4)
        },
        "detectable_format:multiple_sections": lambda rng, _: {
            "section_spliter": rng.choice(("Section", "SECTION", "Part")),
            "num_sections": rng.randint(2, 4),
        },
        "detectable_format:title": lambda rng, _: {},
        "detectable_format:json_format": lambda rng, _: {},
        "detectable_format:constrained_response": lambda rng, _: {},
        "detectable_content:number_placeholders": lambda rng, _: {
            "num_placeholders": rng.randint(1, 4)
        },
        "detectable_content:postscript": lambda rng, _: {
            "postscript_marker": rng.choice(("P.S.", "P.P.S"))
        },
        "change_case:capital_word_frequency": _capitals,
        "change_case:english_capital": lambda rng, _: {},
        "change_case:english_lowercase": lambda rng, _: {},
        "startend:end_checker": lambda rng, _: {"end_phrase": rng.choice(ENDINGS)},
        "startend:quotation": lambda rng, _: {},
        "punctuation:no_comma": lambda rng, _: {},
        "combination:two_responses": lambda rng, _: {},
        "combination:repeat_prompt": lambda rng, seed: {"prompt_to_repeat": seed},
    }
)
"""Id → draws its kwargs, given the seed instruction."""
