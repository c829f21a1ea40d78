"""The types that count: lengths, keywords, letters, words in capitals, bullets, highlights.

``is_met`` of each is IFEval's rule; where the hardened reading parts from it, a line says so.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from rewards.constraints.port import (
    Count,
    HardConstraint,
    PositiveCount,
    Reading,
    Relation,
    Text,
    Texts,
    compare,
    pattern,
)
from rewards.constraints.text import count_capital_words, count_sentences


class NumberOfSentences(HardConstraint):
    """``length_constraints:number_sentences``."""

    relation: Relation
    num_sentences: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Punkt's sentences; hardened, ``Wow!!!`` is one."""
        as_nltk = reading == "reference"
        count = count_sentences(answer, self.num_sentences, as_nltk=as_nltk)
        return compare(count, self.relation, self.num_sentences)


class NumberOfWords(HardConstraint):
    """``length_constraints:number_words``: runs of letters, digits and underscores."""

    relation: Relation
    num_words: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Count and compare."""
        return compare(len(re.findall(r"\w+", answer)), self.relation, self.num_words)


class NumberOfParagraphs(HardConstraint):
    """``length_constraints:number_paragraphs``: parts between ``***``."""

    num_paragraphs: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """An empty first or last part does not count, an empty one between two others fails."""
        parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
        if any(not part for part in parts[1:-1]):
            return False
        return sum(map(bool, parts)) == self.num_paragraphs


class NthParagraphFirstWord(HardConstraint):
    """``length_constraints:nth_paragraph_first_word``: parts between two line feeds."""

    num_paragraphs: PositiveCount
    nth_paragraph: PositiveCount
    first_word: Text

    @model_validator(mode="after")
    def _nth_exists(self) -> NthParagraphFirstWord:
        if self.nth_paragraph > self.num_paragraphs:
            raise ValueError(
                f"nth_paragraph {self.nth_paragraph} is beyond num_paragraphs {self.num_paragraphs}"
            )
        return self

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Empty parts do not count, but the index runs over them as well."""
        parts = [part.strip() for part in answer.split("\n\n")]
        if sum(map(bool, parts)) != self.num_paragraphs or not parts[self.nth_paragraph - 1]:
            return False
        word = parts[self.nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
        return re.split(r"[.,?!'\"]", word)[0].lower() == self.first_word.lower()


class KeywordExistence(HardConstraint):
    """``keywords:existence``: every keyword occurs, in any case, also inside a word."""

    keywords: Texts

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Look for each; hardened, as plain text."""
        return all(
            re.search(pattern(keyword, reading), answer, re.IGNORECASE) for keyword in self.keywords
        )


class KeywordFrequency(HardConstraint):
    """``keywords:frequency``: how often a keyword occurs, in any case, also inside a word."""

    keyword: Text
    frequency: Count
    relation: Relation

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Count; hardened, as plain text."""
        found = re.findall(pattern(self.keyword.strip(), reading), answer, re.IGNORECASE)
        return compare(len(found), self.relation, self.frequency)


class ForbiddenWords(HardConstraint):
    """``keywords:forbidden_words``: no keyword occurs as a whole word, in any case."""

    forbidden_words: Texts

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Look for each; hardened, as plain text, and a word may begin or end with a mark."""
        before, after = (r"\b", r"\b") if reading == "reference" else (r"(?<!\w)", r"(?!\w)")
        return not any(
            re.search(before + pattern(word, reading) + after, answer, re.IGNORECASE)
            for word in self.forbidden_words
        )


class LetterFrequency(HardConstraint):
    """``keywords:letter_frequency``: how often one character occurs, in any case."""

    letter: Annotated[str, Field(min_length=1, max_length=1, strict=True)]
    let_frequency: Count
    let_relation: Relation

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Count and compare."""
        count = answer.lower().count(self.letter.lower())
        return compare(count, self.let_relation, self.let_frequency)


class CapitalWordFrequency(HardConstraint):
    """``change_case:capital_word_frequency``: tokens of NLTK that are all in capitals."""

    capital_frequency: Count
    capital_relation: Relation

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Count and compare."""
        return compare(count_capital_words(answer), self.capital_relation, self.capital_frequency)


class NumberOfBullets(HardConstraint):
    """``detectable_format:number_bullet_lists``: lines that begin with ``* `` or ``-``."""

    num_bullets: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Exactly so many."""
        starred = re.findall(r"^[^\S\n]*\*[^\*].*$", answer, re.M)
        dashed = re.findall(r"^[^\S\n]*-.*$", answer, re.M)
        return len(starred) + len(dashed) == self.num_bullets


class NumberOfHighlights(HardConstraint):
    """``detectable_format:number_highlighted_sections``: ``*so*`` or ``**so**`` within a line."""

    num_highlights: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """At least so many that are not blank."""
        single = re.findall(r"\*([^\n\*]*)\*", answer)
        double = re.findall(r"\*\*([^\n\*]*)\*\*", answer)
        return sum(bool(inner.strip()) for inner in single + double) >= self.num_highlights


class NumberOfSections(HardConstraint):
    """``detectable_format:multiple_sections``: a splitter with a number, such as ``Section 2``."""

    section_spliter: Text
    num_sections: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """At least so many; hardened, the splitter is plain text."""
        splitter = pattern(self.section_spliter.strip(), reading)
        found = re.split(rf"\s?{splitter}\s?\d+\s?", answer)
        return len(found) - 1 >= self.num_sections


class NumberOfPlaceholders(HardConstraint):
    """``detectable_content:number_placeholders``: ``[so]`` within a line."""

    num_placeholders: Count

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """At least so many; an empty one counts."""
        return sum(map(_bracketed, answer.split("\n"))) >= self.num_placeholders


def _bracketed(line: str) -> int:
    r"""How often ``\[.*?\]`` occurs, in time that grows with the line alone."""
    count, end = 0, -1
    while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
        count += 1
    return count
