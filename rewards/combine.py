"""From verdicts to one number: R = sum over the route's principles of weight x score.

Owns the additive combination (SafeLadder, arXiv 2507.18576: additive, no gate, no scaling). It
fails closed: without a final verdict for every routed principle there is no reward at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from safeladder.records import Verdict, VerdictStatus


def combine_rewards(weights: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> float:
    """Weighted sum of the scores of one sample, over the principles of its route.

    ``weights`` maps principle to weight, ``verdicts`` maps principle to its verdict; verdicts of
    principles outside the route are ignored. NOT_APPLICABLE leaves its term out. Raises
    ``ValueError`` for a missing or INVALID verdict, for a verdict filed under another principle,
    and if no term is left: a sample that nobody judged has no reward.

    >>> ok = VerdictStatus.OK
    >>> def verdict(principle, score):
    ...     return Verdict(sample_id="0/0/0", principle=principle, verifier="v",
    ...                    verifier_version="1", status=ok, score=score)
    >>> combine_rewards({"safety": 1.0, "format": 0.5},
    ...                 {"safety": verdict("safety", 0.1), "format": verdict("format", 1.0)})
    0.6
    """
    terms = []
    for principle, weight in weights.items():
        verdict = verdicts.get(principle)
        if verdict is None:
            raise ValueError(f"{principle}: no verdict, so the sample has no reward")
        if verdict.principle != principle:
            raise ValueError(f"{principle}: the verdict given is one of {verdict.principle!r}")
        if verdict.status is VerdictStatus.NOT_APPLICABLE:
            continue
        if verdict.score is None:
            raise ValueError(f"{principle}: INVALID({verdict.cause}), so the sample has no reward")
        terms.append(weight * verdict.score)
    if not terms:
        raise ValueError(f"no principle of {sorted(weights)} applies, so there is no reward")
    reward = math.fsum(terms)
    if not math.isfinite(reward):
        raise ValueError(f"reward {reward} is not finite; weights: {dict(weights)}")
    return reward
