"""A light classifier of responses: TF-IDF terms, one linear layer, all of it in a JSON file.

Owns the terms of a text, the file and the way from it to probabilities; needs no learning library.
``evals.fit_classifier`` makes the file. It reads style and words, not truth: see the accuracy table
in ``docs/verifiers.md`` before you train on its scores.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError, model_validator

from rewards.judging import Judgment, RuleVerifier, UnjudgedError
from rewards.label_scores import judge_by_logprobs
from rewards.texture import plain, words
from safeladder.config import Section, Share
from safeladder.errors import ConfigError
from safeladder.records import InvalidCause, ScoreRequest

Part = Literal["question", "answer", "reference"]
Numbers = tuple[FiniteFloat, ...]
CHARS = (2, 3, 4)
"""Lengths of the letter runs that count as terms."""


def terms(texts: Mapping[Part, str]) -> Iterator[str]:
    """Words, pairs of words and letter runs of each part, marked by the part's first letter.

    >>> sorted(terms({"answer": "No!"}))
    ['a#', 'a:no', 'a~ n', 'a~ no', 'a~ no ', 'a~no', 'a~no ', 'a~o ']
    """
    for part, text in texts.items():
        mark, tokens = part[0], words(text)
        yield f"{mark}#"
        yield from (f"{mark}:{token}" for token in tokens)
        yield from (f"{mark}:{a} {b}" for a, b in itertools.pairwise(tokens))
        for chunk in plain(text).split():
            padded = f" {''.join(c for c in chunk if c.isalnum()) or chunk} "
            for size in CHARS:
                yield from (f"{mark}~{padded[i : i + size]}" for i in range(len(padded) - size + 1))


class TextModel(Section):
    """A fitted classifier, as it stands in its file."""

    format: Literal["safeladder-text-classifier-1"] = "safeladder-text-classifier-1"
    inputs: Annotated[tuple[Part, ...], Field(min_length=1)]
    """Parts of a sample that are read."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    terms: tuple[str, ...]
    """[N]"""
    idf: Numbers
    """[N]"""
    weights: tuple[Numbers, ...]
    """[labels, N]"""
    biases: Numbers
    """[labels]"""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        sizes = {len(self.terms), len(self.idf), *map(len, self.weights)}
        if len(sizes) != 1 or not len(self.labels) == len(self.weights) == len(self.biases):
            raise ValueError("terms, idf, weights, biases and labels differ in size")
        if len(set(self.terms)) != len(self.terms) or len(set(self.labels)) != len(self.labels):
            raise ValueError("a term or a label stands twice")
        return self


class LinearText:
    """A ``TextModel`` ready to read."""

    def __init__(self, model: TextModel) -> None:
        self.inputs = model.inputs
        self.labels = model.labels
        self._index = {term: i for i, term in enumerate(model.terms)}
        self._idf = np.asarray(model.idf)
        self._weights = np.asarray(model.weights)
        self._biases = np.asarray(model.biases)

    def logprobs(self, texts: Mapping[Part, str]) -> list[float] | None:
        """Natural log-prob of each label, or None for texts without any known word."""
        counts = Counter(t for t in terms(texts) if t in self._index)
        if not any(term[1] == ":" for term in counts):
            return None
        at = np.fromiter((self._index[t] for t in counts), np.int64, len(counts))
        values = (1 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))) * self._idf[at]
        logits = self._weights[:, at] @ (values / np.linalg.norm(values)) + self._biases
        return [float(x) for x in logits - np.logaddexp.reduce(logits)]


class TextClassifier(RuleVerifier):
    """Scores by a fitted text classifier.

    ``path``: its file. ``scores``: label → score, for every label of the file. ``score``: ``prob``
    is the expected score, ``hard`` that of one label; the better of two must reach ``threshold``.
    A text without any word seen in training is INVALID(abstain).
    """

    is_quick = True

    def __init__(
        self,
        *,
        principle: str,
        path: Path,
        scores: dict[str, Share],
        score: Literal["prob", "hard"] = "prob",
        threshold: Share = 0.5,
    ) -> None:
        model, digest = load_model(path)
        if set(scores) != set(model.labels):
            raise ValueError(f"scores must name the labels {sorted(model.labels)} of {path}")
        self._scores = {label: scores[label] for label in model.labels}
        super().__init__(
            principle,
            {"sha256": digest, "scores": self._scores, "score": score, "threshold": threshold},
        )
        self._text = LinearText(model)
        self._score: Literal["prob", "hard"] = score
        self._threshold = threshold

    def judge(self, request: ScoreRequest) -> Judgment:
        """Evidence lists the probabilities."""
        logprobs = self._text.logprobs(parts_of(request, self._text.inputs))
        if logprobs is None:
            raise UnjudgedError(InvalidCause.ABSTAIN, "no word of the text is known")
        return judge_by_logprobs(logprobs, self._scores, self._score, self._threshold)


def parts_of(request: ScoreRequest, inputs: Sequence[Part]) -> dict[Part, str]:
    """The named parts of a sample."""
    found: dict[Part, str] = {
        "question": request.question,
        "answer": request.answer,
        "reference": request.reference or "",
    }
    return {part: found[part] for part in inputs}


def load_model(path: Path) -> tuple[TextModel, str]:
    """The classifier in a file and the file's SHA-256. Raises ``ConfigError``."""
    try:
        raw = path.read_bytes()
        return TextModel.model_validate_json(raw), hashlib.sha256(raw).hexdigest()
    except OSError as error:
        raise ConfigError(f"text classifier {path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"text classifier {path}: {at}: {first['msg']}") from None


def round_off(values: Sequence[float]) -> Numbers:
    """Numbers as they are written: six significant digits."""
    return tuple(float(f"{value:.6g}") for value in values)
