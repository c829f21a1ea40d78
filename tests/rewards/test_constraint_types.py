"""Each of the 25 types: what meets it and what does not, at its bounds, written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.constraints.language import detected_language
from rewards.constraints.reward import check
from rewards.constraints.rows import stated
from rewards.constraints.vocabulary import HARD

ENGLISH = "the weather is nice today and we are going to walk along the river together"
KOREAN = "오늘은 날씨가 좋아서 우리는 강을 따라 함께 걸을 것입니다"
LESS, LEAST = "less than", "at least"

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    # id, kwargs, a text that meets it, a text that does not
    (
        "length_constraints:number_sentences",
        {"relation": LESS, "num_sentences": 2},
        "Dr. Lee is in.",
        "One. Two.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": LEAST, "num_sentences": 2},
        "One. Two.",
        "Dr. Lee is in.",
    ),
    ("length_constraints:number_sentences", {"relation": LEAST, "num_sentences": 0}, "x", " "),
    (
        "length_constraints:number_words",
        {"relation": LESS, "num_words": 3},
        "one two",
        "one two three",
    ),
    (
        "length_constraints:number_words",
        {"relation": LEAST, "num_words": 3},
        "don't go",
        "two words",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "***\na\n***\nb\n***",
        "a *** *** b",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "a", "a *** b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"},
        "a\n\nwell, b",
        "well a\n\nb",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "it"},
        "\"It's so",
        "its so",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"},
        "a\n\nb\n\n",
        "a\n\n\n\nb",
    ),
    ("keywords:existence", {"keywords": ["Tea", "milk"]}, "teapots and MILK", "tea alone"),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": LEAST},
        "Tea, steam: teas",
        "tea",
    ),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": LESS},
        "one tea",
        "tea tea",
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "dog"]},
        "a concatenation of dogs",
        "a Cat!",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": LEAST},
        "eEe",
        "ee",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": LESS},
        "ee",
        "EEE",
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": LEAST},
        "#tag",
        "tag",
    ),
    ("language:response_language", {"language": "ko"}, KOREAN, ENGLISH),
    ("language:response_language", {"language": "en"}, ENGLISH, KOREAN),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "list:\n* a\n - b",
        "* a\n* b\n- c",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n- a", "**bold**"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n---", "- a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 0}, "a\n*", "- a"),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*a* and *b*",
        "*a* and * *",
    ),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "**a**", "**\n**"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nsection 2\nb",
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 1},
        "PART 1: a\nPART 2: b",
        "PART one",
    ),
    ("detectable_format:title", {}, "text\n<<a title>>", "<<\ntitle>>"),
    ("detectable_format:title", {}, "<<a>>", "<< >>"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', 'Here: {"a": 1}'),
    ("detectable_format:json_format", {}, "[1, 2]", "[" * 100_000),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "my answer is no."),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "[name] of []",
        "[na\nme] of [city]",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Bye.\np. s. I left",
        "Bye.\nPS I left",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        "Bye. P.P.S more",
        "Bye. P.S. more",
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "Note:"},
        "so.\nNOTE: x",
        "so.\nNote x",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LEAST},
        "A BIG dog",
        "A big dog",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        "a BIG dog",
        "U.S. HALF-asleep NO!",
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH.capitalize()),
    ("change_case:english_capital", {}, ENGLISH.upper(), KOREAN),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    (
        "change_case:english_lowercase",
        {},
        ENGLISH,
        "das wetter ist heute schön und wir gehen am fluss spazieren",
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The End. "},
        '"So it was. the end."',
        "The end. Really",
    ),
    ("startend:quotation", {}, ' "so" ', '"so'),
    ("startend:quotation", {}, '""', '"'),
    ("punctuation:no_comma", {}, "a; b， c", "a, b"),
    ("combination:two_responses", {}, "a ****** b", "a ****** a"),
    ("combination:two_responses", {}, "****** a ****** b ******", "a ****** ****** b"),
    ("combination:two_responses", {}, "a******b", "a ****** b ****** c"),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": " Say Hi. "},
        "\nsay hi. Hi!",
        "Hi! Say hi.",
    ),
]


@pytest.mark.parametrize("reading", ["reference", "hardened"])
@pytest.mark.parametrize(("name", "kwargs", "met", "missed"), CASES)
def test_a_constraint_is_met_or_missed(
    name: str, kwargs: dict[str, Any], met: str, missed: str, reading: Any
) -> None:
    (one,) = stated([{"id": name, "kwargs": kwargs}])
    assert one.is_met(met, reading)
    assert not (missed.strip() and one.is_met(missed, reading))


def test_every_type_has_cases() -> None:
    assert {name for name, *_ in CASES} == set(HARD)
    assert len(HARD) == 25


@pytest.mark.parametrize(
    ("name", "kwargs", "text", "as_published", "hardened"),
    [
        ("language:response_language", {"language": "ko"}, "12 + 3 = 15 !", True, False),
        ("keywords:existence", {"keywords": ["a.c"]}, "abc", True, False),
        ("keywords:existence", {"keywords": ["a.c"]}, "a.c", True, True),
        (
            "keywords:frequency",
            {"keyword": "C*", "frequency": 1, "relation": LESS},
            "so",
            False,
            True,
        ),
        ("keywords:forbidden_words", {"forbidden_words": ["C+"]}, "CCC rules", False, True),
        ("keywords:forbidden_words", {"forbidden_words": ["C+"]}, "it is C+.", False, False),
        ("keywords:forbidden_words", {"forbidden_words": ["C+"]}, "it is C+x", False, True),
        ("keywords:forbidden_words", {"forbidden_words": [".*"]}, "anything", False, True),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "Part.", "num_sections": 1},
            "Parts 1",
            True,
            False,
        ),
        (
            "length_constraints:number_sentences",
            {"relation": LEAST, "num_sentences": 2},
            "Wow!!!",
            True,
            False,
        ),
    ],
)
def test_where_the_hardened_reading_parts_from_the_published_one(
    name: str, kwargs: dict[str, Any], text: str, as_published: bool, hardened: bool
) -> None:
    (one,) = stated([{"id": name, "kwargs": kwargs}])
    assert one.is_met(text, "reference") is as_published
    assert one.is_met(text, "hardened") is hardened


def test_the_language_of_a_text_is_the_same_every_time() -> None:
    for text in ("la casa e do mar", "mi casa e do mar de la", "na na ne no da se"):
        # Without a seed each is found in another language once in a dozen times.
        assert len({detected_language(text) for _ in range(60)}) == 1


@pytest.mark.parametrize(
    ("name", "kwargs", "told"),
    [
        ("length_constraints:number_words", {"relation": "about", "num_words": 3}, "relation"),
        ("length_constraints:number_words", {"relation": LEAST}, "num_words: Field required"),
        ("length_constraints:number_words", {"relation": LEAST, "num_words": "3"}, "num_words"),
        ("keywords:existence", {"keywords": []}, "keywords"),
        ("keywords:existence", {"keywords": [" "]}, "must not be blank"),
        ("punctuation:no_comma", {"strict": True}, "strict: Extra inputs"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": LESS},
            "letter",
        ),
        ("language:response_language", {"language": "klingon"}, "'klingon' is not one of"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph 3 is beyond",
        ),
        ("keywords:unheard_of", {}, "unknown constraint 'keywords:unheard_of'"),
    ],
)
def test_wrong_parameters_are_named_and_never_drawn_at_random(
    name: str, kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=r"unknown|:") as caught:
        stated([{"id": name, "kwargs": kwargs}])
    assert name in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*", "a*a*b", ".*.*=.*", "a?" * 20])
def test_an_expression_that_can_take_for_ever_is_masked(expression: str) -> None:
    (row,) = stated([{"id": "keywords:existence", "kwargs": {"keywords": [expression]}}])
    assert check([row], "a" * 40 + "!", "reference") == (None,)
    assert check([row], f"{expression} as it stands", "hardened") == (True,)


@pytest.mark.parametrize(
    ("text", "bullets", "placeholders", "has_title"),
    [
        ("\n" * 50_000 + "* so", 1, 0, False),
        ("[" * 50_000 + "]\n[a][]", 0, 3, False),
        ("<" * 50_000, 0, 0, False),
        ("<<>>>\n<< >>\n<<a>> >>", 0, 0, True),
        ("*\n\n* b\n - c\n** d", 3, 0, False),
    ],
)
def test_monotonous_answers_are_counted_in_one_pass(
    text: str, bullets: int, placeholders: int, has_title: bool
) -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("detectable_format:number_bullet_lists", {"num_bullets": bullets}),
        ("detectable_content:number_placeholders", {"num_placeholders": placeholders}),
        ("detectable_content:number_placeholders", {"num_placeholders": placeholders + 1}),
        ("detectable_format:title", {}),
    ]
    rows = stated([{"id": name, "kwargs": kwargs} for name, kwargs in kinds])
    assert check(rows, text, "hardened") == (True, True, False, has_title)
