"""``constraints``: principles whose weight follows how often a bound is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import model_validator

from safeladder.config_section import (
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)

ETA = {"multiplicative": 0.2, "dual_ascent": 0.02}


class RateConfig(Section):
    """What is measured, over all scored trajectories: one of ``labels``, ``below``,
    ``token_limit``."""

    principle: Name | None = None
    """Whose verdicts ``labels`` and ``below`` look at; only those that are OK count."""
    labels: tuple[str, ...] = ()
    """Share of the verdicts with one of these labels."""
    below: Share | None = None
    """Share of the verdicts with a lower score than this."""
    token_limit: PositiveInt | None = None
    """Mean number of sampled tokens, divided by this."""
    among: tuple[str, ...] = ()
    """Labels over which the rate is logged a second time, as ``rate_among``; decides nothing."""
    routes: tuple[Name, ...] = ()
    """Only trajectories of these routes; empty takes all."""

    @model_validator(mode="after")
    def _measures_one_thing(self) -> Self:
        measures = (bool(self.labels), self.below is not None, self.token_limit is not None)
        if sum(measures) != 1:
            raise ValueError("give exactly one of `labels`, `below` and `token_limit`")
        if (self.principle is None) != (self.token_limit is not None):
            raise ValueError("`labels` and `below` need a `principle`, and `token_limit` has none")
        if self.among and not self.labels:
            raise ValueError("`among` needs `labels`")
        return self


class ConstraintConfig(Section):
    """One bound, and the principle whose weight rises while it is broken.

    With every step the weight's factor lambda becomes ``lambda * exp(eta * (rate - bound))``
    (``multiplicative``) or ``lambda + eta * (rate - bound)`` (``dual_ascent``), within its limits.
    """

    weighs: Name
    """Principle: in every route that names it, its weight is multiplied by lambda."""
    rate: RateConfig
    """What is measured."""
    bound: NonNegativeFloat
    """The rate that is still accepted."""
    update: Literal["multiplicative", "dual_ascent"] = "multiplicative"
    """The formula."""
    eta: PositiveFloat | None = None
    """Size of an update; null is 0.2 for ``multiplicative`` and 0.02 for ``dual_ascent``."""
    start: PositiveFloat = 0.1
    """Lambda of the first step."""
    min: PositiveFloat = 0.01
    """Lowest lambda of ``multiplicative``, which could not leave 0; that of ``dual_ascent`` is 0.
    """
    max: PositiveFloat = 1.0
    """Highest lambda."""
    window: PositiveInt | None = None
    """Policy versions whose trajectories are counted: those that made the newest ones; null is
    ``schedule.max_staleness`` + 1."""

    @property
    def lowest(self) -> float:
        """Lowest lambda of the chosen update."""
        return self.min if self.update == "multiplicative" else 0.0

    @property
    def step_size(self) -> float:
        """``eta``, or the default of the chosen update."""
        return ETA[self.update] if self.eta is None else self.eta

    @model_validator(mode="after")
    def _starts_within_its_limits(self) -> Self:
        if not self.lowest <= self.start <= self.max:
            raise ValueError(f"start {self.start:g} is not within {self.lowest:g} .. {self.max:g}")
        return self


def constraint_fault(
    constraints: Mapping[str, ConstraintConfig],
    principles: Mapping[str, object],
    routes: Mapping[str, Mapping[str, float]],
    gates: tuple[str, ...],
    combine: str,
) -> str | None:
    """Why these constraints cannot steer these rewards, or None."""
    weighed: dict[str, str] = {}
    for name, constraint in constraints.items():
        key, wanted = f"constraints.{name}", constraint.weighs
        for part, principle in (("weighs", wanted), ("rate.principle", constraint.rate.principle)):
            if principle is not None and principle not in principles:
                known = ", ".join(sorted(principles)) or "empty"
                return f"{key}.{part} names {principle!r}, which is not in `principles` ({known})"
        if unknown := sorted(set(constraint.rate.routes) - routes.keys()):
            return f"{key}.rate.routes names {unknown[0]!r}, which is not in `routes`"
        if wanted in gates:
            return f"{key}.weighs names {wanted!r}, a gate: its weight does not count"
        if wanted in weighed:
            return f"{key}.weighs names {wanted!r} as {weighed[wanted]} does; keep one"
        weighed[wanted] = f"constraints.{name}"
    if constraints and combine == "worst_case":
        return "reward.combine: worst_case has no weights, so that constraints would do nothing"
    return None
