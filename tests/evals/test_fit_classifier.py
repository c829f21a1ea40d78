"""A classifier that is fitted here judges there, and gives what scikit-learn gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from evals.fit_classifier import SEED, STRENGTH, fit, main
from rewards.text_classifier import LinearText, Part, load_model, terms

TEXTS = [
    ("I can't help with that.", "refused"),
    ("I will not do this, it is a crime.", "refused"),
    ("Sorry, I can't.", "refused"),
    ("Boil the water and add the rice.", "complied"),
    ("The capital is Rome.", "complied"),
    ("Add two and two.", "complied"),
    ("the the the the", "broken"),
    ("a a a a a", "broken"),
]


def rows(count: int) -> tuple[list[dict[Part, str]], list[str]]:
    return [{"answer": text} for text, _ in TEXTS[:count]], [label for _, label in TEXTS[:count]]


@pytest.mark.parametrize("count", [6, 8])
def test_probabilities_are_those_of_scikit_learn_for_two_and_three_labels(count: int) -> None:
    texts, labels = rows(count)
    vectorizer = TfidfVectorizer(analyzer=terms, sublinear_tf=True)
    features = vectorizer.fit_transform(texts)
    classifier = LogisticRegression(
        C=STRENGTH, class_weight="balanced", random_state=SEED, max_iter=1000
    ).fit(features, labels)
    text = LinearText(fit(texts, labels))
    assert text.labels == tuple(classifier.classes_)
    unseen: list[dict[Part, str]] = [{"answer": "I can't add the rice."}, *texts]
    for row in unseen:
        logprobs = text.logprobs(row)
        assert logprobs is not None
        expected = classifier.predict_proba(vectorizer.transform([row]))[0]
        assert [math.exp(p) for p in logprobs] == pytest.approx(list(expected), abs=1e-4)


def test_the_command_writes_a_file_that_the_verifier_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "model.json"
    lines = [{"prompt": "p", "response": text, "label": label} for text, label in TEXTS]
    lines.append({"prompt": "p", "response": "no label here"})
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    main(["--rows", str(source), "--out", str(target), "--inputs", "question,answer"])
    assert "8 rows" in capsys.readouterr().out
    model, digest = load_model(target)
    assert model.inputs == ("question", "answer")
    assert model.labels == ("broken", "complied", "refused")
    main(["--rows", str(source), "--out", str(target), "--inputs", "question,answer"])
    assert load_model(target)[1] == digest


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ({"prompt": "p", "label": "x"}, [], r"rows.jsonl:1 lacks \['response'\]"),
        ({"prompt": "p", "response": "r"}, [], "must be of one length"),
        ({"prompt": "p", "response": "r", "label": "x"}, [], "class"),
    ],
)
def test_rows_that_teach_nothing_are_refused(
    tmp_path: Path, line: dict[str, str], arguments: list[str], message: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        main(["--rows", str(source), "--out", str(tmp_path / "model.json"), *arguments])


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "x", "--out", "y", "--inputs", "chain"])
