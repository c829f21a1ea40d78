"""Fit a light text classifier on labelled rows and write it as JSON: ``rewards.text_classifier``.

``python -m evals.fit_classifier --rows FILE --label COLUMN --out FILE [--inputs question,answer]``;
each line of the rows has ``prompt``, ``response``, optionally ``reference``, and the label.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from rewards.text_classifier import Part, TextModel, round_off, terms

SEED = 20261
STRENGTH = 10.0
"""Inverse of the L2 penalty."""
COLUMNS: Mapping[Part, str] = {"question": "prompt", "answer": "response", "reference": "reference"}


def fit(rows: Sequence[Mapping[Part, str]], labels: Sequence[str]) -> TextModel:
    """A classifier of N rows with the same parts. Same rows, same classifier.

    Raises ``ValueError`` without rows, for rows with other parts, and for a single label.
    """
    if not rows or len(rows) != len(labels) or len({tuple(row) for row in rows}) != 1:
        raise ValueError("rows and labels must be of one length, and all rows have the same parts")
    vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
    features = vectorizer.fit_transform(rows)
    classifier = LogisticRegression(
        C=STRENGTH, class_weight="balanced", random_state=SEED, max_iter=1000
    ).fit(features, list(labels))
    weights, biases = classifier.coef_, classifier.intercept_
    if len(classifier.classes_) == 2:  # one row of weights speaks for the second label
        weights = np.vstack([np.zeros_like(weights), weights])
        biases = np.concatenate([np.zeros_like(biases), biases])
    return TextModel(
        inputs=tuple(rows[0]),
        labels=tuple(str(label) for label in classifier.classes_),
        terms=tuple(vectorizer.get_feature_names_out()),
        idf=round_off(vectorizer.idf_),
        weights=tuple(round_off(row) for row in weights),
        biases=round_off(biases),
    )


def read_rows(
    path: Path, label: str, inputs: Sequence[Part]
) -> tuple[list[dict[Part, str]], list[str]]:
    """Parts and labels of the rows that have the column ``label``.

    Raises ``ValueError`` naming the line of a row that lacks a part.
    """
    rows: list[dict[Part, str]] = []
    labels: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if label not in row:
            continue
        missing = [COLUMNS[part] for part in inputs if not isinstance(row.get(COLUMNS[part]), str)]
        if missing:
            raise ValueError(f"{path}:{number} lacks {missing}")
        rows.append({part: row[COLUMNS[part]] for part in inputs})
        labels.append(str(row[label]))
    return rows, labels


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="evals.fit_classifier", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines")
    parser.add_argument("--label", default="label", help="column of the label")
    parser.add_argument("--inputs", default="answer", help="comma list: question,answer,reference")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    given = parser.parse_args(arguments)
    inputs: list[Part] = []
    for name in given.inputs.split(","):
        if name not in get_args(Part):
            parser.error(f"--inputs: {name!r} is not one of {', '.join(get_args(Part))}")
        inputs.append(name)
    rows, labels = read_rows(given.rows, given.label, inputs)
    model = fit(rows, labels)
    given.out.write_text(model.model_dump_json(), encoding="utf-8")
    sys.stdout.write(f"{given.out}: {len(rows)} rows, {len(model.terms)} terms, {model.labels}\n")


if __name__ == "__main__":
    main()
