"""How constraints are worded: at least five sentences for each hard type, all our own.

A sentence has no full stop at its end, since an instruction joins its constraints with full stops.
The slots are the type's parameters (``HardConstraint.slots``); lists become quoted words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rewards.constraints.port import HardConstraint

TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "length_constraints:number_sentences": (
            "Write {relation} {num_sentences} sentences",
            "Your answer should have {relation} {num_sentences} sentences",
            "Use {relation} {num_sentences} sentences in your reply",
            "The number of sentences in your response must be {relation} {num_sentences}",
            "Keep your response to {relation} {num_sentences} sentences",
        ),
        "length_constraints:number_words": (
            "Write {relation} {num_words} words",
            "Answer with {relation} {num_words} words",
            "Your response should consist of {relation} {num_words} words",
            "The whole reply must have {relation} {num_words} words",
            "Use {relation} {num_words} words to answer",
        ),
        "length_constraints:number_paragraphs": (
            "Write exactly {num_paragraphs} paragraphs and put the divider *** between them",
            "Your answer must have {num_paragraphs} paragraphs, separated by ***",
            "Divide your response into {num_paragraphs} paragraphs with the markdown divider ***",
            "Give {num_paragraphs} paragraphs and separate any two of them with ***",
            "There must be {num_paragraphs} paragraphs in your reply, divided by ***",
        ),
        "length_constraints:nth_paragraph_first_word": (
            "Write exactly {num_paragraphs} paragraphs with one empty line between any two, "
            'and begin paragraph {nth_paragraph} with the word "{first_word}"',
            "There should be {num_paragraphs} paragraphs, separated by two line breaks, and "
            'paragraph number {nth_paragraph} must start with "{first_word}"',
            "Your answer has {num_paragraphs} paragraphs divided by empty lines. The first word of "
            "paragraph {nth_paragraph} is {first_word}",
            "Use {num_paragraphs} paragraphs, each two new lines from the next. Let paragraph "
            "{nth_paragraph} open with {first_word}",
            "Split your reply into {num_paragraphs} paragraphs by empty lines. In paragraph "
            '{nth_paragraph}, "{first_word}" comes first',
        ),
        "keywords:existence": (
            "Use the words {keywords}",
            "Your answer has to contain {keywords}",
            "Include {keywords} in your response",
            "Make sure that {keywords} can be found in your reply",
            "Work the following into your answer: {keywords}",
        ),
        "keywords:frequency": (
            'Use the word "{keyword}" {relation} {frequency} times',
            'The word "{keyword}" should appear {relation} {frequency} times in your answer',
            "In your response, write {keyword} {relation} {frequency} times",
            "Mention {keyword} {relation} {frequency} times",
            'Let "{keyword}" occur {relation} {frequency} times in your reply',
        ),
        "keywords:forbidden_words": (
            "Do not use the words {forbidden_words}",
            "Your answer must not contain {forbidden_words}",
            "Avoid {forbidden_words} in your response",
            "Leave {forbidden_words} out of your reply",
            "Write without any of the following: {forbidden_words}",
        ),
        "keywords:letter_frequency": (
            'Let the letter "{letter}" appear {let_relation} {let_frequency} times',
            "Your answer should contain the letter {letter} {let_relation} {let_frequency} times",
            'Use "{letter}", small or capital, {let_relation} {let_frequency} times',
            "Count the letter {letter}: it must occur {let_relation} {let_frequency} times",
            'Write so that "{letter}" turns up {let_relation} {let_frequency} times',
        ),
        "language:response_language": (
            "Answer in {language} only",
            "Your whole response must be in {language}",
            "Write the entire answer in {language} and in no other language",
            "Use nothing but {language} in your reply",
            "Please respond in {language}, without a word of any other language",
        ),
        "detectable_format:number_bullet_lists": (
            "Give exactly {num_bullets} bullet points in Markdown, such as:\n* One point\n"
            "* Another point",
            "Your answer must contain {num_bullets} bullet points, no more and no fewer. Begin "
            'each of them with "* "',
            'List exactly {num_bullets} points, each on a line of its own that starts with "* "',
            "Use Markdown bullets (* like this) for exactly {num_bullets} points",
            "There must be {num_bullets} bullet points in your reply, written as:\n* A point",
        ),
        "detectable_format:number_highlighted_sections": (
            "Highlight at least {num_highlights} passages with Markdown, like *this passage*",
            "Set at least {num_highlights} parts of your answer between asterisks, *as here*",
            "Mark {num_highlights} or more phrases of your response as *highlighted*",
            "At least {num_highlights} phrases must be highlighted, for example *this phrase*",
            "Use *asterisks* to highlight no fewer than {num_highlights} passages",
        ),
        "detectable_format:multiple_sections": (
            "Write {num_sections} sections and begin each with {section_spliter} and its number, "
            "such as {section_spliter} 1",
            "Your answer must have {num_sections} sections, marked {section_spliter} 1, "
            "{section_spliter} 2 and so on",
            'Divide your response into {num_sections} parts. Head each with "{section_spliter} X", '
            "where X is its number",
            "Use {num_sections} sections, each opened by a line {section_spliter} X:\n"
            "{section_spliter} 1\n(text)\n{section_spliter} 2\n(text)",
            "Structure your reply in {num_sections} sections, headed {section_spliter} 1 to "
            "{section_spliter} {num_sections}",
        ),
        "detectable_format:title": (
            "Give your answer a title in double angular brackets, such as <<a quiet day>>",
            "Your response must have a title, written as <<title>>",
            "Put a title between << and >>",
            "Include a title, wrapped like this: <<the title>>",
            "Start with a title of your own between double angular brackets, as in <<my title>>",
        ),
        "detectable_format:json_format": (
            "Write the entire answer as JSON",
            "Your whole output must be valid JSON. A code fence of ``` around it is allowed",
            "Return nothing but one JSON value",
            "Format the complete response as JSON and add no text outside it",
            "Answer with JSON only",
        ),
        "detectable_format:constrained_response": (
            'Answer with one of these: "My answer is yes.", "My answer is no.", "My answer is '
            'maybe."',
            'Choose exactly one: ("My answer is yes.", "My answer is no.", "My answer is maybe.")',
            'Your reply has to be "My answer is yes.", "My answer is no." or "My answer is maybe."',
            'Say nothing but "My answer is yes.", "My answer is no." or "My answer is maybe."',
            'Only "My answer is yes.", "My answer is no." and "My answer is maybe." are allowed '
            "answers",
        ),
        "detectable_content:number_placeholders": (
            "Use at least {num_placeholders} placeholders in square brackets, such as [address]",
            "Your answer must contain {num_placeholders} or more placeholders like [name]",
            "Leave at least {num_placeholders} blanks to fill in, written as [date]",
            "Include no fewer than {num_placeholders} placeholders in square brackets: [city]",
            "At least {num_placeholders} details should be placeholders, for example [price]",
        ),
        "detectable_content:postscript": (
            "Add a postscript that starts with {postscript_marker}",
            "At the end, write a postscript beginning with {postscript_marker}",
            "Close with a postscript, introduced by {postscript_marker}",
            "Your reply has to end with a postscript ({postscript_marker})",
            "After your answer, put a note that opens with {postscript_marker}",
        ),
        "change_case:capital_word_frequency": (
            "Write {capital_relation} {capital_frequency} words in capital letters only",
            "Words in ALL CAPITALS should appear {capital_relation} {capital_frequency} times",
            "Use {capital_relation} {capital_frequency} words that are entirely in capitals",
            "In your response, have {capital_relation} {capital_frequency} fully capitalized words",
            "Stress words by capital letters {capital_relation} {capital_frequency} times",
        ),
        "change_case:english_capital": (
            "Write your whole answer in English and in capital letters only",
            "Use capital letters throughout, in English",
            "Your entire response must be in English, all in capitals",
            "Answer in English without a single small letter",
            "Reply in English, with every letter a capital",
        ),
        "change_case:english_lowercase": (
            "Write your whole answer in English and in lowercase letters only",
            "Use no capital letters at all, and write in English",
            "Your entire response must be in English, all in lowercase",
            "Answer in English without a single capital letter",
            "Reply in English, with every letter a small one",
        ),
        "startend:end_checker": (
            'End your answer with exactly this: "{end_phrase}"',
            "The last words of your response must be: {end_phrase}",
            'Finish with the phrase "{end_phrase}" and let nothing follow it',
            'Your reply has to close with "{end_phrase}"',
            "Write this at the very end, with no other words after it: {end_phrase}",
        ),
        "startend:quotation": (
            "Put your whole answer in double quotation marks",
            "Wrap the entire response in double quotes",
            'Begin and end your reply with a double quotation mark (")',
            "Your answer must stand between double quotation marks",
            "Enclose all that you write in double quotes",
        ),
        "punctuation:no_comma": (
            "Do not use any commas",
            "Write without commas",
            "Your answer must not contain a single comma",
            "Avoid commas in your whole response",
            "No commas are allowed in your reply",
        ),
        "combination:two_responses": (
            "Give two different answers and put six asterisks (******) between them",
            "Write two different responses, separated by ******",
            "Answer twice, in different ways, with nothing but ****** in between",
            "Your reply has two different answers, divided by ******",
            "Offer two responses that differ and separate them with ******",
        ),
        "combination:repeat_prompt": (
            "First repeat the request word for word, then give your answer. Say nothing before it, "
            "and leave this sentence out of it",
            "Begin by repeating the request above without any change and answer it afterwards. Do "
            "not repeat this sentence",
            "Copy the request exactly as it stands, without this sentence, then answer",
            "Start with the request itself, repeated unchanged and without this sentence, before "
            "your answer",
            "Before you answer, repeat the request above word for word, but not this sentence",
        ),
    }
)
"""Id → sentences with slots."""


def word(name: str, constraint: HardConstraint, choice: int) -> str:
    """The constraint in words; ``choice`` picks the sentence, modulo their number.

    >>> from rewards.constraints.vocabulary import HARD
    >>> two = HARD["keywords:existence"].model_validate({"keywords": ("tea", "milk")})
    >>> word("keywords:existence", two, 0)
    'Use the words "tea" and "milk"'
    """
    sentences = TEMPLATES[name]
    slots = {key: _said(value) for key, value in constraint.slots().items()}
    return sentences[choice % len(sentences)].format(**slots)


def _said(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    quoted = [f'"{one}"' for one in value]
    return " and ".join((", ".join(quoted[:-1]), quoted[-1]) if len(quoted) > 1 else quoted)
