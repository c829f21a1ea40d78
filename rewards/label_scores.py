"""From the log-probs of a judge's labels to a score. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from rewards.judging import Judgment, UnjudgedError
from safeladder.records import InvalidCause


def label_probabilities(logprobs: Sequence[float]) -> list[float]:
    """Softmax over the labels: what share of the mass on all labels each of them has.

    Raises ``UnjudgedError`` (malformed) if one is not finite or above 0.

    >>> label_probabilities([-1.0, -1.0])
    [0.5, 0.5]
    """
    if not all(-math.inf < logprob <= 1e-4 for logprob in logprobs):  # rounding may exceed 0
        raise UnjudgedError(InvalidCause.MALFORMED, f"log-probs of labels: {list(logprobs)}")
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


MIN_MASS = 0.01
"""Default of a judge's ``min_mass``: below it, at least 99 of 100 of the judge's replies would be
something else than a label, and how the rest divides says next to nothing. It is this low because
spellings that are not counted (a blank in front, capitals, a word before the label) take much of
the mass from judges that answer well."""


def judge_by_logprobs(
    logprobs: Sequence[float],
    scores: Mapping[str, float],
    how: Literal["prob", "hard"],
    threshold: float,
    min_mass: float = 0.0,
) -> Judgment:
    """``prob`` is the expected score, sum of P(label) x score; ``hard`` is the score of one label.

    With labels of score 1 and 0 the expected score is P(of the first): P(good) for values, and
    (P(TRUE) + 1 - P(FALSE)) / 2 for knowledge, since both probabilities add up to 1. The hard label
    of two is the better scored one if its probability reaches ``threshold``, of more the likeliest.

    Raises ``UnjudgedError`` (malformed) if the labels together are less likely than ``min_mass``:
    the model would then have said something else.
    """
    if len(logprobs) != len(scores):
        detail = f"{len(logprobs)} log-probs for {len(scores)} labels"
        raise UnjudgedError(InvalidCause.MALFORMED, detail)
    shares = dict(zip(scores, label_probabilities(logprobs), strict=True))
    mass = math.fsum(math.exp(logprob) for logprob in logprobs)
    if mass < min_mass:
        raise UnjudgedError(
            InvalidCause.MALFORMED, f"the labels have {mass:.2g} of all mass, less than {min_mass}"
        )
    label = max(shares, key=shares.__getitem__)
    if how == "hard" and len(scores) == 2:
        worse, better = sorted(scores, key=scores.__getitem__)
        label = better if shares[better] >= threshold else worse
    score = scores[label]
    if how == "prob":
        score = min(1.0, math.fsum(p * scores[name] for name, p in shares.items()))
    listed = ", ".join(f"{name} {p:.3f}" for name, p in shares.items())
    return Judgment(score, label, f"{listed}; {mass:.2g} of all mass")
