"""What a study of importance says over all its trials: by CDDI, by slot, and whether constraints
that matter more are met more often. Intervals are percentile bootstraps. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.order_statistics import RESAMPLES, Array


def summarize_importance(
    records: Sequence[Mapping[str, Any]], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """JSON values: ``levels`` (mean share of the constraints at each CDDI, and by slot),
    ``change`` of that share from the lowest CDDI to the highest with its interval over prompts, and
    the ``correlation`` of a constraint's share with its success.

    ``within_type`` takes from both the mean of the constraint's type first: types differ in both
    for reasons of their own.
    """
    rng = np.random.default_rng(seed)
    levels = sorted({record["cddi"] for record in records})
    rows = []
    for level in levels:
        here = [r for r in records if r["cddi"] == level]
        slots = range(len(here[0]["slots"]))
        rows.append(
            {
                "cddi": level,
                "trials": len(here),
                "share": _mean([r["share"] for r in here]),
                "slots": [_mean([r["slots"][slot]["share"] for r in here]) for slot in slots],
            }
        )
    return {
        "trials": len(records),
        "levels": rows,
        "change": _change(records, levels, rng, resamples),
        "correlation": _correlation(records, rng, resamples),
    }


def _change(
    records: Sequence[Mapping[str, Any]],
    levels: Sequence[float],
    rng: np.random.Generator,
    resamples: int,
) -> dict[str, Any]:
    share = {(r["prompt"], r["cddi"]): r["share"] for r in records if r["share"] is not None}
    first, last = levels[0], levels[-1]
    both = sorted({p for p, _ in share if (p, first) in share and (p, last) in share})
    by_prompt = np.asarray([share[p, last] - share[p, first] for p in both])
    if not both or first == last:
        return {"value": None, "ci95": None, "prompts": len(both)}
    ends = None
    if len(both) > 1:
        drawn = by_prompt[rng.integers(0, len(both), (resamples, len(both)))].mean(axis=1)
        ends = [float(end) for end in np.quantile(drawn, [0.025, 0.975])]
    return {"value": float(by_prompt.mean()), "ci95": ends, "prompts": len(both)}


def _correlation(
    records: Sequence[Mapping[str, Any]], rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    rows = [
        (record["cluster"], kind, slot["share"], float(passed))
        for record in records
        for kind, slot, passed in zip(
            record["types"], record["slots"], record["passed"], strict=True
        )
        if passed is not None and slot["share"] is not None
    ]
    clusters = sorted({row[0] for row in rows})
    found: dict[str, Any] = {"constraints": len(rows), "clusters": len(clusters)}
    shares, passed = (np.asarray([row[k] for row in rows], float) for k in (2, 3))
    kinds = np.asarray([row[1] for row in rows])
    places = [np.flatnonzero([row[0] == cluster for row in rows]) for cluster in clusters]
    for name, within in (("plain", False), ("within_type", True)):
        value = _pearson(shares, passed, kinds if within else None)
        ends = None
        if len(clusters) > 1 and value is not None:
            drawn = []
            for picked in rng.integers(0, len(clusters), (resamples // 4, len(clusters))):
                at = np.concatenate([places[k] for k in picked])
                drawn.append(_pearson(shares[at], passed[at], kinds[at] if within else None))
            told = [one for one in drawn if one is not None]
            if len(told) > len(drawn) / 2:
                ends = [float(end) for end in np.quantile(told, [0.025, 0.975])]
        found[name] = {"value": value, "ci95": ends}
    return found


def _pearson(x: Array, y: Array, kinds: Any | None) -> float | None:
    """Pearson's correlation; None if one of both does not vary."""
    if not x.size:
        return None
    if kinds is not None:
        x, y = _less_its_mean(x, kinds), _less_its_mean(y, kinds)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 1e-12 else None


def _less_its_mean(values: Array, kinds: Any) -> Array:
    _, index = np.unique(kinds, return_inverse=True)
    means = np.bincount(index, values) / np.bincount(index)
    found: Array = values - means[index]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
