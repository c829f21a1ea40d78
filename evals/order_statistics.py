"""What the order of constraints does to a model: accuracy at each CDDI, and how sure it is.

    CLA (constraint level)  = passed constraints / constraints
    ILA (instruction level) = share of instructions with every constraint passed

Micro-averaged, IFEval's strict reading, as in PBIF. What is INVALID is in no sum; an instruction
with an INVALID constraint is in no ILA. Intervals are percentile bootstraps over clusters of
prompts: whole clusters are drawn, with all their levels, so what makes a prompt hard stays on both
sides of a difference. The p-values come from permutations: the levels of each prompt change places
with each other, as they could if order did nothing. Pure; knows no engine and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.order_trials import Outcome

Array = npt.NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over constraints, or instructions, of each prompt at each level; 0 of 0 where none."""

    levels: tuple[float, ...]
    """[L] CDDI, rising."""
    clusters: npt.NDArray[np.int64]
    """[G] cluster of each prompt."""
    passed: Array
    """[G, L]"""
    total: Array
    """[G, L]"""

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], *, whole: bool = False, group: str = "") -> Tally:
        """Constraints of the types that begin with ``group``; with ``whole`` instructions."""
        levels = sorted({o.trial.cddi for o in outcomes})
        prompts = sorted({o.trial.prompt for o in outcomes})
        cluster_of = {o.trial.prompt: o.trial.cluster for o in outcomes}
        names = sorted(set(cluster_of.values()))
        passed = np.zeros((len(prompts), len(levels)))
        total = np.zeros_like(passed)
        row = {prompt: g for g, prompt in enumerate(prompts)}
        column = {level: k for k, level in enumerate(levels)}
        for outcome in outcomes:
            place = row[outcome.trial.prompt], column[outcome.trial.cddi]
            if whole:
                passed[place] += outcome.is_complete and all(outcome.passed)
                total[place] += outcome.is_complete
                continue
            for kind, verdict in zip(outcome.trial.types, outcome.passed, strict=True):
                if verdict is not None and kind.startswith(group):
                    passed[place] += verdict
                    total[place] += 1
        index = [names.index(cluster_of[prompt]) for prompt in prompts]
        return cls(tuple(levels), np.asarray(index, np.int64), passed, total)

    def paired(self, first: int, second: int) -> Tally:
        """Two levels, and the prompts that have something at both."""
        both = (self.total[:, first] > 0) & (self.total[:, second] > 0)
        at = [first, second]
        levels = (self.levels[first], self.levels[second])
        return Tally(levels, self.clusters[both], self.passed[both][:, at], self.total[both][:, at])

    def shares(self, weights: Array) -> Array:
        """[R, L] passed / total under [R, C] weights of clusters; NaN where there is nothing."""
        by_prompt = weights[:, self.clusters]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Array = (by_prompt @ self.passed) / (by_prompt @ self.total)
        return found

    def point(self) -> Array:
        """[L] shares as they are."""
        shares: Array = self.shares(np.ones((1, self.num_clusters)))[0]
        return shares

    def draws(self, rng: np.random.Generator, resamples: int) -> Array | None:
        """[R, L] shares of resampled clusters; None if there are not two clusters."""
        count = len(np.unique(self.clusters))
        if count < 2:
            return None
        present = np.unique(self.clusters)
        weights = np.zeros((resamples, self.num_clusters))
        weights[:, present] = rng.multinomial(count, np.full(count, 1 / count), resamples)
        return self.shares(weights)

    @property
    def num_clusters(self) -> int:
        """One more than the highest cluster."""
        return int(self.clusters.max()) + 1 if self.clusters.size else 0


def summarize_order(
    outcomes: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The figures of one round, as JSON values; shares lie in [0, 1], None is what cannot be told.

    Rotations are in ``rotations`` alone: the levels compare what was drawn in the same way.
    """
    drawn = [o for o in outcomes if o.trial.variant == "level"]
    if not drawn:
        raise ValueError("there is no trial to summarize")
    rng = np.random.default_rng(seed)
    cla, ila = Tally.of(drawn), Tally.of(drawn, whole=True)
    cddi = np.asarray(cla.levels)
    groups = sorted({kind.partition(":")[0] for o in drawn for kind in o.trial.types})
    return {
        "prompts": cla.passed.shape[0],
        "clusters": len(np.unique(cla.clusters)),
        "answers": len(drawn),
        "levels": _levels(drawn, cla, ila, rng, resamples),
        "slope": _effect(cla, lambda shares: _slope(cddi, shares), rng, resamples),
        "spread": _effect(cla, np.ptp, rng, resamples),
        "change_cla": _change(cla, rng, resamples),
        "change_ila": _change(ila, rng, resamples),
        "groups": {
            group: _change(Tally.of(drawn, group=f"{group}:"), rng, resamples) for group in groups
        },
        "rotations": _rotations(outcomes, rng, resamples),
    }


def _levels(
    outcomes: Sequence[Outcome], cla: Tally, ila: Tally, rng: np.random.Generator, resamples: int
) -> list[dict[str, Any]]:
    drawn = {"cla": cla.draws(rng, resamples), "ila": ila.draws(rng, resamples)}
    rows = []
    for k, level in enumerate(cla.levels):
        here = [o for o in outcomes if o.trial.cddi == level]
        verdicts = [verdict for o in here for verdict in o.passed]
        row: dict[str, Any] = {"cddi": level, "inversions": here[0].trial.inversions}
        for name, tally in (("cla", cla), ("ila", ila)):
            row[name] = _number(tally.point()[k])
            shares = drawn[name]
            row[f"{name}_ci95"] = None if shares is None else _interval(shares[:, k])
        row |= {"answers": len(here), "constraints": len(verdicts)}
        rows.append(row | {"invalid": verdicts.count(None)})
    return rows


def _effect(
    tally: Tally, figure: Callable[[Array], Any], rng: np.random.Generator, resamples: int
) -> dict[str, Any]:
    """A figure of the [L] shares, its interval, and what it is if order does nothing."""
    point = float(figure(tally.point()))
    drawn = tally.draws(rng, resamples)
    found: dict[str, Any] = {"value": _number(point), "ci95": None, "p": None, "by_chance": None}
    if drawn is None or len(tally.levels) < 2:
        return found
    chance = np.asarray([float(figure(shares)) for shares in _permuted(tally, rng, resamples)])
    as_large = np.abs(chance) >= abs(point) - 1e-12
    return found | {
        "ci95": _interval(np.asarray([float(figure(shares)) for shares in drawn])),
        "p": float((1 + as_large.sum()) / (1 + resamples)),
        "by_chance": _number(float(np.nanmean(chance))),
    }


def _change(tally: Tally, rng: np.random.Generator, resamples: int) -> dict[str, Any]:
    """From the lowest CDDI to the highest, on the prompts that have a verdict at both."""
    pair = tally.paired(0, len(tally.levels) - 1)
    found: dict[str, Any] = {"first": None, "last": None, "change": None, "ci95": None}
    found |= {"prompts": pair.passed.shape[0], "verdicts": int(pair.total.sum())}
    if not pair.passed.shape[0] or len(tally.levels) < 2:
        return found
    first, last = pair.point()
    drawn = pair.draws(rng, resamples)
    interval = None if drawn is None else _interval(drawn[:, 1] - drawn[:, 0])
    return found | {
        "first": _number(first),
        "last": _number(last),
        "change": _number(last - first),
        "ci95": interval,
    }


def _rotations(
    outcomes: Sequence[Outcome], rng: np.random.Generator, resamples: int
) -> list[dict[str, Any]]:
    """Two orders of equal CDDI: does accuracy differ although CDDI does not?"""
    turned = [o for o in outcomes if o.trial.variant == "rotation"]
    found = []
    for level in sorted({o.trial.cddi for o in turned}):
        orders = sorted({o.trial.ranks for o in turned if o.trial.cddi == level})
        if len(orders) != 2:
            continue
        row: dict[str, Any] = {"cddi": level, "orders": [list(order) for order in orders]}
        found.append(row | _change(_side_by_side(turned, orders), rng, resamples))
    return found


def _side_by_side(outcomes: Sequence[Outcome], orders: Sequence[tuple[int, ...]]) -> Tally:
    """A tally whose two columns are two orders instead of two levels."""
    chosen = [o for o in outcomes if o.trial.ranks in orders]
    prompts = sorted({o.trial.prompt for o in chosen})
    clusters = sorted({o.trial.cluster for o in chosen})
    passed, total = np.zeros((2, len(prompts), 2))
    index = np.zeros(len(prompts), np.int64)
    for outcome in chosen:
        row = prompts.index(outcome.trial.prompt)
        place = row, orders.index(outcome.trial.ranks)
        index[row] = clusters.index(outcome.trial.cluster)
        passed[place] += sum(verdict is True for verdict in outcome.passed)
        total[place] += sum(verdict is not None for verdict in outcome.passed)
    return Tally((0.0, 1.0), index, passed, total)


def _slope(cddi: Array, shares: Array) -> float:
    """Of the least-squares line through the levels, per unit of CDDI; NaN without two levels."""
    known = np.isfinite(shares)
    centered = cddi[known] - cddi[known].mean() if known.any() else cddi[known]
    across = float(centered @ centered)
    told = shares[known] - shares[known].mean() if known.any() else shares[known]
    return float(centered @ told) / across if across else float("nan")


def _permuted(tally: Tally, rng: np.random.Generator, resamples: int) -> Array:
    """[R, L] shares after the levels of each prompt have changed places."""
    found = np.empty((resamples, len(tally.levels)))
    for r in range(resamples):
        order = rng.permuted(
            np.tile(np.arange(len(tally.levels)), (len(tally.clusters), 1)), axis=1
        )
        passed, total = (
            np.take_along_axis(a, order, 1).sum(0) for a in (tally.passed, tally.total)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            found[r] = passed / total
    return found


def _interval(values: Array) -> list[float] | None:
    known = values[np.isfinite(values)]
    if known.size < len(values) / 2 or not known.size:
        return None
    low, high = np.quantile(known, [0.025, 0.975])
    return [float(low), float(high)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
