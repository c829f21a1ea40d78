"""How often judges are right: a table over labelled sets.

``python -m evals.judge_accuracy --data DIR [--judge smollm2|classifier] [--set NAME] [--limit N]``
measures a small language model as judge (by the log-probs of its labels; ``smollm2-reply`` by what
it writes) and a classifier fitted on other rows. An INVALID verdict is not right: it counts in
``n`` and lowers accuracy and balanced accuracy, and its share stands in a column of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from evals.fit_classifier import fit
from evals.intervals import wilson
from evals.judge_sets import JudgeSet, LabelledRow, read_sets
from rewards.judge import Judge
from rewards.text_classifier import LinearText, Part
from safeladder.records import Message, ScoreRequest

JUDGES = ("smollm2", "smollm2-reply", "classifier")
SMOLLM2 = Path("build/models/smollm2-135m-instruct")
COMPLETER = "actors.completer:TransformersCompleter"
SEED = 20262
NUM_FOLDS = 5
TIMEOUT_S = 600.0
Found = Sequence[str | None]
"""A judge's label for each row; None stands for INVALID."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One line of the table."""

    judge_set: str
    template: str
    judge: str
    n: int
    accuracy: float
    low: float
    high: float
    """95 % interval of the accuracy (Wilson)."""
    balanced: float
    """Mean over the labels of the share of their rows that are right."""
    majority: float
    """Accuracy of always naming the most frequent label."""
    invalid: float


def measure(judge_set: JudgeSet, judge: str, truth: Sequence[str], found: Found) -> Accuracy:
    """Compare N labels with the right ones. Raises ``ValueError`` for N = 0 or other lengths."""
    if not truth or len(truth) != len(found):
        raise ValueError(f"{len(truth)} rows and {len(found)} labels")
    right = Counter(t for t, f in zip(truth, found, strict=True) if t == f)
    counts = Counter(truth)
    low, high = wilson(right.total(), len(truth))
    return Accuracy(
        judge_set=judge_set.name,
        template=judge_set.template,
        judge=judge,
        n=len(truth),
        accuracy=right.total() / len(truth),
        low=low,
        high=high,
        balanced=sum(right[label] / counts[label] for label in counts) / len(counts),
        majority=max(counts.values()) / len(truth),
        invalid=sum(label is None for label in found) / len(truth),
    )


def classify(judge_set: JudgeSet) -> Found:
    """Labels of all rows by classifiers that were fitted on other groups."""
    if judge_set.training:
        seen = {row.group for row in judge_set.rows}
        training = [row for row in judge_set.training if row.group not in seen]
        return _fit_and_label(training, judge_set.rows)
    rows = judge_set.rows
    labels, groups = [row.label for row in rows], [row.group for row in rows]
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=SEED)
    found: dict[int, str | None] = {}
    for train, test in folds.split(labels, labels, groups):
        named = _fit_and_label([rows[i] for i in train], [rows[i] for i in test])
        found.update(zip(test.tolist(), named, strict=True))
    return [found[i] for i in range(len(rows))]


async def ask(judge: Judge, rows: Sequence[LabelledRow]) -> Found:
    """Labels by a language model."""
    await judge.start()
    try:
        verdicts = await judge.score([_request(row, i) for i, row in enumerate(rows)])
    finally:
        await judge.close()
    return [verdict.label for verdict in verdicts]


def sample(size: int, limit: int | None) -> list[int]:
    """Positions of at most ``limit`` rows of ``size``, the same ones every time."""
    if limit is None or limit >= size:
        return list(range(size))
    return sorted(random.Random(SEED).sample(range(size), limit))


def table(lines: Sequence[Accuracy]) -> str:
    """The lines as Markdown."""
    head = ["set", "template", "judge", "n", "accuracy", "95 % interval"]
    head += ["balanced", "majority", "INVALID"]
    rows = [
        [
            line.judge_set, line.template, line.judge, str(line.n), f"{line.accuracy:.3f}",
            f"{line.low:.3f} to {line.high:.3f}", f"{line.balanced:.3f}", f"{line.majority:.3f}",
            f"{line.invalid:.3f}",
        ]
        for line in lines
    ]  # fmt: skip
    ruled = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in ruled)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="evals.judge_accuracy", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with creak/ and ethics/")
    parser.add_argument(
        "--judge", choices=JUDGES, action="append", help="default: smollm2, classifier"
    )
    parser.add_argument("--set", dest="only", help="part of a set's or template's name")
    parser.add_argument("--limit", type=int, help="rows of a set, drawn with a fixed seed")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="folder of the language model")
    given = parser.parse_args(arguments)
    lines = []
    for judge_set in read_sets(given.data):
        if given.only and given.only not in f"{judge_set.name} {judge_set.template}":
            continue
        for name in given.judge or ("smollm2", "classifier"):
            lines.append(_line(judge_set, name, given.limit, given.model))
    sys.stdout.write(table(lines))


def _line(judge_set: JudgeSet, name: str, limit: int | None, model: Path) -> Accuracy:
    chosen = sample(len(judge_set.rows), limit)
    rows = [judge_set.rows[i] for i in chosen]
    if name == "classifier":
        labels = classify(judge_set)
        found: Found = [labels[i] for i in chosen]
    else:
        found = asyncio.run(ask(_judge(judge_set.template, name, model), rows))
    return measure(judge_set, name, [row.label for row in rows], found)


def _judge(template: str, name: str, model: Path) -> Judge:
    return Judge(
        principle=template,
        template=template,
        completer=COMPLETER,
        completer_options={"path": str(model)},
        mode="reply" if name.endswith("-reply") else "logits",
        min_mass=0.0,  # a verdict on every row, however unlikely all labels are
        timeout_s=TIMEOUT_S,
    )


def _fit_and_label(training: Sequence[LabelledRow], rows: Sequence[LabelledRow]) -> Found:
    model = fit([_parts(row) for row in training], [row.label for row in training])
    text = LinearText(model)
    found: list[str | None] = []
    for row in rows:
        logprobs = text.logprobs(_parts(row))
        best = None if logprobs is None else max(zip(logprobs, text.labels, strict=True))[1]
        found.append(best)
    return found


def _parts(row: LabelledRow) -> dict[Part, str]:
    parts: dict[Part, str] = {"question": row.question, "answer": row.response}
    return parts if row.reference is None else parts | {"reference": row.reference}


def _request(row: LabelledRow, index: int) -> ScoreRequest:
    return ScoreRequest(
        sample_id=str(index),
        attempt=0,
        messages=(Message("user", row.question),),
        response=row.response,
        finish_reason="stop",
        num_tokens=0,
        route="normal",
        reference=row.reference,
    )


if __name__ == "__main__":
    main()
