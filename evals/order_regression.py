"""Is it the order, or which constraint stands where? Two linear models of pass/fail.

    additive     pass ~ type + slot + CDDI
    interacting  pass ~ type + slot + type x slot + CDDI

In the additive model each type has its own ease and each slot its own pull. Every order has each
type and each slot once, so these two add up to the same in every order, and CDDI's coefficient is
little else than the slope of CLA. What it leaves open is whether a type gains by standing in front
*itself*, whatever the others do. The interacting model gives each type a slope of its own along the
slots; if CDDI keeps an effect there, the order of the others matters too. That is the claim to be
tested (arXiv 2502.17204 does not part them).

Linear probabilities by least squares, since a type that always passes or never does has no finite
logit. Intervals are percentile bootstraps over clusters of prompts. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.order_statistics import Array
from evals.order_trials import Outcome

RESAMPLES = 1000
FAINT = 1e-9
"""Share of the largest singular value below which a direction counts as not in the data."""


def regress_order(
    outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Both models as JSON values: for each, ``cddi`` (change of the pass share per unit of CDDI)
    and ``slots`` (pass share of each slot less that of the first), each with value and ``ci95``.

    A value is None where the data do not tell it apart from the other terms.
    """
    rows = [
        (outcome.trial, slot, float(verdict))
        for outcome in outcomes
        for slot, verdict in enumerate(outcome.passed)
        if verdict is not None
    ]
    clusters = sorted({trial.cluster for trial, _, _ in rows})
    found: dict[str, Any] = {"rows": len(rows), "clusters": len(clusters)}
    if not rows:
        return found | {"additive": None, "interacting": None}
    types = sorted({trial.types[slot] for trial, slot, _ in rows})
    slots = range(max(slot for _, slot, _ in rows) + 1)
    is_type = _indicators([types.index(trial.types[slot]) for trial, slot, _ in rows], len(types))
    is_slot = _indicators([slot for _, slot, _ in rows], len(slots))[:, 1:]
    cddi = np.asarray([trial.cddi for trial, _, _ in rows])[:, None]
    along = np.asarray([slot for _, slot, _ in rows], float)[:, None]
    passed = np.asarray([verdict for _, _, verdict in rows])
    index = np.asarray([clusters.index(trial.cluster) for trial, _, _ in rows])
    additive = np.hstack([cddi, is_slot, is_type])
    # The slope of one type follows from those of the others and the slots: it is left out.
    interacting = np.hstack([additive, is_type[:, 1:] * (along - along.mean())])
    rng = np.random.default_rng(seed)
    for name, terms in (("additive", additive), ("interacting", interacting)):
        values, low, high = _fit(terms, passed, index, rng, resamples)
        told = [
            {"value": _known(values[k]), "ci95": _both(low[k], high[k])} for k in range(len(slots))
        ]
        found[name] = {"cddi": told[0], "slots": {str(k): told[k] for k in slots if k}}
    return found


def _indicators(index: Sequence[int], count: int) -> Array:
    """[N, count] with a 1 in the column of each row."""
    found: Array = np.eye(count)[np.asarray(index, int)]
    return found


def _fit(
    terms: Array, passed: Array, clusters: Array, rng: np.random.Generator, resamples: int
) -> tuple[Array, Array, Array]:
    """[K] coefficients and the ends of their intervals; NaN where they cannot be told."""
    count = int(clusters.max()) + 1
    squares, products = _normal_equations(terms, passed, clusters, count)
    values = _solve(squares.sum(0)[None], products.sum(0)[None])[0]
    if count < 2:
        return values, np.full_like(values, np.nan), np.full_like(values, np.nan)
    weights = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(float)
    drawn = _solve(
        np.einsum("rc,cij->rij", weights, squares, optimize=True), weights @ products
    )  # [R, K]
    known = np.isfinite(drawn).mean(0) > 0.5
    ends = np.full((2, values.size), np.nan)
    ends[:, known] = np.nanquantile(drawn[:, known], [0.025, 0.975], axis=0)
    return values, ends[0], ends[1]


def _normal_equations(
    terms: Array, passed: Array, clusters: Array, count: int
) -> tuple[Array, Array]:
    """X'X [C, K, K] and X'y [C, K] of each cluster: all that a resample needs."""
    width = terms.shape[1]
    squares, products = np.zeros((count, width, width)), np.zeros((count, width))
    for c in range(count):
        mine = clusters == c
        squares[c], products[c] = terms[mine].T @ terms[mine], terms[mine].T @ passed[mine]
    return squares, products


def _solve(squares: Array, products: Array) -> Array:
    """Least-norm solutions [R, K]; NaN for a coefficient that the data leave free."""
    values, vectors = np.linalg.eigh(squares)
    is_there = values > FAINT * values.max(axis=1, keepdims=True)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=is_there)
    rotated = np.einsum("rji,rj->ri", vectors, products)
    solved: Array = np.einsum("rij,rj->ri", vectors, inverse * rotated)
    # A coefficient is free if it has a part in a direction that is not in the data.
    free = np.einsum("rij,rj->ri", vectors**2, (~is_there).astype(float)) > 1e-6
    solved[free] = np.nan
    return solved


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _both(low: float, high: float) -> list[float] | None:
    return [float(low), float(high)] if np.isfinite(low) and np.isfinite(high) else None
