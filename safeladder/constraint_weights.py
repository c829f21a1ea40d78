"""The controller of constraint weights: rates in, lambdas out. Pure; owned by the coordinator.

For each constraint, with the rate over the trajectories of a window of policy versions, at the
commit of a step (Deliberative Searcher, arXiv 2507.16727, names both forms)::

    multiplicative   lambda <- clip(lambda * exp(eta * (rate - bound)), min, max)
    dual_ascent      lambda <- clip(lambda + eta * (rate - bound), 0, max)

What a step changes is proposed when the step is ordered, and in force once it is committed. The
proposal is plain data: stored with the order, it is there whenever a checkpoint of that step is, so
that a run that is resumed goes on with the lambdas that it had. Knows neither clock nor ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from safeladder.constraint_config import ConstraintConfig, RateConfig
from safeladder.errors import DivergedError
from safeladder.records import Verdict, VerdictStatus


class Count(msgspec.Struct, kw_only=True):
    """Trajectories of one policy version, as one constraint counts them."""

    hits: float = 0.0
    """Those that the rate is about; for lengths the sum of tokens / limit."""
    total: int = 0
    among: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(
            hits=self.hits + other.hits,
            total=self.total + other.total,
            among=self.among + other.among,
        )


class ConstraintState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One constraint, as it is stored."""

    weight: float
    """Lambda."""
    counts: dict[int, Count] = {}
    """Version that made the oldest token → its trajectories."""
    rate: float | None = None
    """At the last update; None before one, and where nothing was measured."""
    rate_among: float | None = None


States = dict[str, ConstraintState]
"""Constraint → its state."""


@dataclass(slots=True)
class ConstraintWeights:
    """All constraints of a run. ``default_window`` stands for a window that is null; ``stored`` is
    what ``drain`` returned for the step that the run goes on from."""

    constraints: Mapping[str, ConstraintConfig]
    default_window: int = 1
    stored: str | None = None
    _states: States = field(init=False)
    _proposed: States = field(init=False, default_factory=dict)
    _unstored: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        known = {} if self.stored is None else msgspec.json.decode(self.stored, type=States)
        self._states = {
            name: self._within(constraint, known.get(name))
            for name, constraint in self.constraints.items()
        }

    @property
    def factors(self) -> dict[str, float]:
        """Principle → what its weight is multiplied by now."""
        return {c.weighs: self._states[name].weight for name, c in self.constraints.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """``constraint/<name>/lambda``; ``rate`` and ``rate_among`` where they were measured."""
        found: dict[str, float] = {}
        for name, state in self._states.items():
            found[f"constraint/{name}/lambda"] = state.weight
            for key, value in (("rate", state.rate), ("rate_among", state.rate_among)):
                if value is not None:
                    found[f"constraint/{name}/{key}"] = value
        return found

    def observe(
        self,
        version: int,
        route: str,
        verdicts: Mapping[str, Iterable[Verdict]],
        lengths: Sequence[int],
    ) -> None:
        """Count a group whose verdicts are final: made since ``version``, its verdicts by
        principle, and the sampled tokens of each sibling. What is INVALID is no trajectory."""
        for name, constraint in self.constraints.items():
            rate, counts = constraint.rate, self._states[name].counts
            if not rate.routes or route in rate.routes:
                judged = verdicts.get(rate.principle or "", ())
                counts[version] = counts.get(version, Count()) + _counted(rate, judged, lengths)

    def propose(self, step: int) -> None:
        """Compute the lambdas that follow from a step (from 1), whose version is ``step``, for
        ``drain``. Raises ``DivergedError`` for one that is not finite."""
        self._proposed = {
            name: self._updated(name, constraint, step)
            for name, constraint in self.constraints.items()
        }
        if self._proposed:
            self._unstored[step] = msgspec.json.encode(self._proposed).decode()

    def drain(self) -> dict[int, str]:
        """Step → JSON text of the state after it, of what was proposed since the last call."""
        states, self._unstored = self._unstored, {}
        return states

    def commit(self) -> None:
        """Put the proposal in force. What was observed since it was made stays counted."""
        for name, proposed in self._proposed.items():
            proposed.counts = self._states[name].counts
            self._states[name] = proposed
        self._proposed = {}

    def _updated(self, name: str, constraint: ConstraintConfig, step: int) -> ConstraintState:
        state = self._states[name]
        window = constraint.window or self.default_window
        state.counts = {v: count for v, count in state.counts.items() if v >= step - window}
        counts = dict(state.counts)
        seen = sum(counts.values(), Count())
        if not seen.total:
            return ConstraintState(weight=state.weight, counts=counts)
        rate = seen.hits / seen.total
        excess = constraint.step_size * (rate - constraint.bound)
        if constraint.update == "multiplicative":
            weight = state.weight * _exp(excess)
        else:
            weight = state.weight + excess
        if not math.isfinite(weight):
            raise DivergedError(
                f"constraints.{name}: lambda is {weight} at step {step} (rate {rate:g}, bound "
                f"{constraint.bound:g}, eta {constraint.step_size:g}); lower eta"
            )
        return ConstraintState(
            weight=min(max(weight, constraint.lowest), constraint.max),
            counts=counts,
            rate=rate,
            rate_among=seen.hits / seen.among if seen.among else None,
        )

    @staticmethod
    def _within(constraint: ConstraintConfig, stored: ConstraintState | None) -> ConstraintState:
        """The state to go on with; a limit that has changed since holds at once."""
        state = stored or ConstraintState(weight=constraint.start)
        state.weight = min(max(state.weight, constraint.lowest), constraint.max)
        return state


def weighed(weights: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """The weights of a route under the lambdas in force.

    >>> weighed({"search_accuracy": 0.9, "reliability": 1.0}, {"reliability": 0.1})
    {'search_accuracy': 0.9, 'reliability': 0.1}
    """
    return {name: weight * factors.get(name, 1.0) for name, weight in weights.items()}


def _counted(rate: RateConfig, verdicts: Iterable[Verdict], lengths: Sequence[int]) -> Count:
    if rate.token_limit is not None:
        return Count(hits=sum(lengths) / rate.token_limit, total=len(lengths))
    judged = [verdict for verdict in verdicts if verdict.status is VerdictStatus.OK]
    if rate.below is not None:
        hits = sum(v.score is not None and v.score < rate.below for v in judged)
    else:
        hits = sum(v.label in rate.labels for v in judged)
    among = sum(v.label in rate.among for v in judged)
    return Count(hits=float(hits), total=len(judged), among=among)


def _exp(exponent: float) -> float:
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf
