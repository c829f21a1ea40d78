"""Siblings of a search, voting by their confidence: what several samples of a question are worth.

``python -m evals.confidence_vote RUN/verdicts.jsonl`` reads what the verifiers of
``rewards.search`` said in a run, and prints one JSON object: the share of questions that one
sample, a majority of the siblings, and their vote weighted by stated confidence get right
(Deliberative Searcher, arXiv 2507.16727, votes so over 4 samples). A question counts with all its
siblings of one attempt.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewards.exact import normalize_answer

_CONFIDENCE = re.compile(r"confidence (\d+)", re.ASCII)


class Said(NamedTuple):
    """One sample's answer. A malformed one says nothing and counts as wrong."""

    answer: str | None
    confidence: int
    is_right: bool


class VoteShares(NamedTuple):
    """Shares of questions answered right."""

    single: float
    """Mean over the samples of a question, then over questions."""
    majority: float
    weighted: float
    questions: int


def winner(said: Sequence[Said], *, weighted: bool) -> Said | None:
    """Who speaks for the siblings: of the answers that are the same when normalized, those with the
    most votes or the most confidence; the earliest of equal ones. None if nobody answered.

    >>> siblings = [Said("Oslo", 2, True), Said("oslo.", 3, True), Said("Bergen", 9, False)]
    >>> winner(siblings, weighted=False).answer, winner(siblings, weighted=True).answer
    ('Oslo', 'Bergen')
    """
    weights: dict[str, int] = {}
    first: dict[str, Said] = {}
    for one in said:
        if one.answer is not None:
            key = normalize_answer(one.answer)
            weights[key] = weights.get(key, 0) + (one.confidence if weighted else 1)
            first.setdefault(key, one)
    return first[max(weights, key=weights.__getitem__)] if weights else None


def vote_shares(groups: Iterable[Sequence[Said]]) -> VoteShares:
    """Over questions, each with the samples of its group. Raises ``ValueError`` for none."""
    rows = []
    for said in groups:
        won = [winner(said, weighted=weighted) for weighted in (False, True)]
        single = sum(one.is_right for one in said) / len(said)
        rows.append((single, *(float(one is not None and one.is_right) for one in won)))
    if not rows:
        raise ValueError("no question was judged by both SearchAccuracy and SearchReliability")
    single, majority, weighted = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return VoteShares(single, majority, weighted, len(rows))


def read_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Said]]:
    """The groups of a verdict log that both verifiers judged whole, in order of appearance."""
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        kind = str(row.get("verifier", "")).rpartition(":")[2]
        if kind in ("SearchAccuracy", "SearchReliability") and row.get("status") == "ok":
            group, _, index = str(row["sample_id"]).rpartition("/")
            found[group, int(row.get("attempt", 0))][index][kind] = row
    for samples in found.values():
        pairs = [(s.get("SearchAccuracy"), s.get("SearchReliability")) for s in samples.values()]
        if all(accuracy and reliability for accuracy, reliability in pairs):
            yield [_said(accuracy, reliability) for accuracy, reliability in pairs]


def _said(accuracy: Any, reliability: Any) -> Said:
    stated = _CONFIDENCE.fullmatch(reliability.get("evidence") or "")
    if stated is None:  # malformed
        return Said(None, 0, False)
    return Said(str(accuracy.get("evidence")), int(stated[1]), accuracy["score"] == 1.0)


def main() -> None:
    """Read a log, print the shares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("log", type=Path, help="verdicts.jsonl of a run")
    path = parser.parse_args().log
    try:
        text = path.read_text(encoding="utf-8")
        shares = vote_shares(read_groups(json.loads(line) for line in text.splitlines() if line))
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{path}: {error}; name the verdicts.jsonl of a search run") from None
    sys.stdout.write(json.dumps(shares._asdict()) + "\n")


if __name__ == "__main__":
    main()
