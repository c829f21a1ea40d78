"""The types that ask for a language, a case, a frame or a form of the whole answer."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import AfterValidator

from rewards.constraints.language import LANGUAGES, detected_language
from rewards.constraints.port import HardConstraint, Reading, Text, pattern

FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _is_language(text: str, code: str, reading: Reading) -> bool:
    """Undetectable text is in every language as published, and in none when hardened."""
    found = detected_language(text)
    return reading == "reference" if found is None else found == code


def _known(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError(f"language {code!r} is not one of {', '.join(LANGUAGES)}")
    return code


class ResponseLanguage(HardConstraint):
    """``language:response_language``: the detected language of the whole answer."""

    language: Annotated[str, AfterValidator(_known)]

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Detect and compare."""
        return _is_language(answer, self.language, reading)

    def slots(self) -> dict[str, str]:
        """Its name."""
        return {"language": LANGUAGES[self.language]}


class EnglishCapital(HardConstraint):
    """``change_case:english_capital``: English, all in capitals."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """The case first: it costs nothing."""
        return answer.isupper() and _is_language(answer, "en", reading)


class EnglishLowercase(HardConstraint):
    """``change_case:english_lowercase``: English, without a capital letter."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """The case first: it costs nothing."""
        return answer.islower() and _is_language(answer, "en", reading)


class NoComma(HardConstraint):
    """``punctuation:no_comma``: no ASCII comma."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Look for one."""
        return "," not in answer


class EndPhrase(HardConstraint):
    """``startend:end_checker``: the last words, in any case, inside quotes or not."""

    end_phrase: Text

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Compare the end."""
        return answer.strip().strip('"').lower().endswith(self.end_phrase.strip().lower())


class Quotation(HardConstraint):
    """``startend:quotation``: the whole answer between double quotes."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Compare both ends."""
        text = answer.strip()
        return len(text) > 1 and text[0] == '"' == text[-1]


class Title(HardConstraint):
    """``detectable_format:title``: ``<<a title>>`` in one line."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Any that is not blank."""
        found = (re.search(r"<<.+>>", line) for line in answer.split("\n") if ">>" in line)
        return any(title[0].lstrip("<").rstrip(">").strip() for title in found if title)


class JsonFormat(HardConstraint):
    """``detectable_format:json_format``: the answer, without a code fence, is JSON."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Parse it."""
        text = answer.strip()
        for fence in ("```json", "```Json", "```JSON", "```"):
            text = text.removeprefix(fence)
        try:
            json.loads(text.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True


class ConstrainedResponse(HardConstraint):
    """``detectable_format:constrained_response``: one of three sentences occurs."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Look for each."""
        return any(option in answer for option in FIXED_ANSWERS)


class Postscript(HardConstraint):
    """``detectable_content:postscript``: the marker, in any case, anywhere in a line."""

    postscript_marker: Text

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """``P.S.`` and ``P.P.S`` may have blanks inside; hardened, others are plain text."""
        marker = self.postscript_marker.strip()
        own = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
        return (
            re.search(own.get(marker, pattern(marker.lower(), reading)), answer.lower()) is not None
        )


class TwoResponses(HardConstraint):
    """``combination:two_responses``: two different parts around ``******``."""

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """An empty part at either end does not count; between two others it fails."""
        parts = [part.strip() for part in answer.split("******")]
        if any(not part for part in parts[1:-1]):
            return False
        full = [part for part in parts if part]
        return len(full) == 2 and full[0] != full[1]


class RepeatPrompt(HardConstraint):
    """``combination:repeat_prompt``: the answer begins with the request, in any case."""

    prompt_to_repeat: Text

    def is_met(self, answer: str, reading: Reading = "hardened") -> bool:
        """Compare the beginning."""
        return answer.strip().lower().startswith(self.prompt_to_repeat.strip().lower())
