"""From verdicts to one number for each sibling of a group: the rule that ``reward`` configures.

Scores s and weights w are those of the principles that judged the sample; g are its gates.

==================  ================================================================================
``additive``        R = prod(g) x sum(w x s)  (SafeLadder, arXiv 2507.18576, which has no gates);
                    with ``gates_earn`` the sum is over the gates as well
``worst_case``      R = prod(g) x min(s)
``decoupled``       R = sum(w x (s - mean) / std), mean and std of each principle over the siblings,
                    of the gated scores prod(g) x s  (GDPO, arXiv 2601.05242)
``floors``          a score below its floor makes R = -sum(w x (floor - s)) over those principles:
                    a sample that breaks a floor never outranks one that keeps all
==================  ================================================================================

It fails closed: without a final verdict for every routed principle there is no reward at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

from safeladder.config import RewardConfig
from safeladder.records import Verdict, VerdictStatus

ADDITIVE = RewardConfig()
Scores = Mapping[str, float]
SAME_SCORE = 1e-9
"""A principle whose scores spread less than this over the siblings has nothing to say."""


class _Terms(NamedTuple):
    """What one sample's verdicts come to."""

    gate: float
    """Product of its gates, 1 without any."""
    scores: Scores
    """Principle → score, gates left out."""
    gates: Scores
    """Gate → score."""


def combine_rewards(
    weights: Mapping[str, float], verdicts: Mapping[str, Verdict], rule: RewardConfig = ADDITIVE
) -> float:
    """The reward of one sample by itself, under any rule but ``decoupled``.

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
    if rule.combine == "decoupled":
        raise ValueError("decoupled rewards need the siblings; call combine_group")
    return _reward(weights, _terms(weights, verdicts, rule), rule)


def combine_group(
    weights: Mapping[str, float],
    siblings: Sequence[Mapping[str, Verdict] | None],
    rule: RewardConfig = ADDITIVE,
) -> tuple[float | None, ...]:
    """The rewards of a group, one for each sibling; None marks one that is left out, and stays so.

    Raises ``ValueError`` as ``combine_rewards``.
    """
    terms = [None if one is None else _terms(weights, one, rule) for one in siblings]
    if rule.combine != "decoupled":
        return tuple(None if one is None else _reward(weights, one, rule) for one in terms)
    known = [one for one in terms if one is not None]
    scales = {name: _scale([_gated(one)[name] for one in known if name in one.scores])
              for name in weights}  # fmt: skip
    return tuple(None if one is None else _decoupled(weights, one, scales) for one in terms)


def _terms(
    weights: Mapping[str, float], verdicts: Mapping[str, Verdict], rule: RewardConfig
) -> _Terms:
    scores: dict[str, float] = {}
    gates: dict[str, float] = {}
    for principle in weights:
        verdict = verdicts.get(principle)
        if verdict is None:
            raise ValueError(f"{principle}: no verdict, so the sample has no reward")
        if verdict.principle != principle:
            raise ValueError(f"{principle}: the verdict given is one of {verdict.principle!r}")
        score = verdict.score
        if score is None:
            if verdict.status is VerdictStatus.NOT_APPLICABLE:
                continue
            raise ValueError(f"{principle}: INVALID({verdict.cause}), so the sample has no reward")
        (gates if principle in rule.gates else scores)[principle] = score
    if not scores:
        raise ValueError(f"no principle of {sorted(weights)} applies, so there is no reward")
    return _Terms(math.prod(gates.values()), scores, gates)


def _reward(weights: Mapping[str, float], terms: _Terms, rule: RewardConfig) -> float:
    if rule.floors:
        gaps = {name: floor - terms.scores.get(name, floor) for name, floor in rule.floors.items()}
        below = [weights[name] * gap for name, gap in gaps.items() if gap > 0]
        if below:
            return -_total(below, weights)
    if rule.combine == "worst_case":
        return terms.gate * min(terms.scores.values())
    earning = {**terms.scores, **terms.gates} if rule.gates_earn else terms.scores
    return terms.gate * _total([weights[n] * s for n, s in earning.items()], weights)


def _gated(terms: _Terms) -> Scores:
    return {name: terms.gate * score for name, score in terms.scores.items()}


def _scale(scores: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation (infinite where the scores are all the same)."""
    if not scores:
        return 0.0, math.inf
    spread = pstdev(scores)
    return fmean(scores), spread if spread > SAME_SCORE else math.inf


def _decoupled(
    weights: Mapping[str, float], terms: _Terms, scales: Mapping[str, tuple[float, float]]
) -> float:
    parts = []
    for name, score in _gated(terms).items():
        mean, spread = scales[name]
        parts.append(weights[name] * (score - mean) / spread)
    return _total(parts, weights)


def _total(parts: Sequence[float], weights: Mapping[str, float]) -> float:
    try:
        total = math.fsum(parts)
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ValueError(f"reward {total} is not finite; weights: {dict(weights)}")
    return total
