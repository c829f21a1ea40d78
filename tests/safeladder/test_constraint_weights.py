"""The controller by hand-computed numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from safeladder.constraint_config import ConstraintConfig
from safeladder.constraint_weights import ConstraintWeights
from safeladder.errors import DivergedError
from safeladder.records import InvalidCause, Verdict, VerdictStatus

CERTAIN, RIGHT, UNSURE = "wrong and certain", "right and certain", "wrong and unsure"


def constraint(**changes: Any) -> ConstraintConfig:
    whole: dict[str, Any] = {
        "weighs": "reliability",
        "rate": {"principle": "reliability", "labels": [CERTAIN], "among": [CERTAIN, UNSURE]},
        "bound": 0.05,
    }
    return ConstraintConfig(**{**whole, **changes})


def weights(stored: str | None = None, window: int = 1, **changes: Any) -> ConstraintWeights:
    return ConstraintWeights({"certainty": constraint(**changes)}, window, stored)


def said(label: str | None, score: float = 0.0) -> Verdict:
    """A verdict; without a label an INVALID one."""
    return Verdict(
        sample_id="0/0/0", principle="reliability", verifier="v", verifier_version="1",
        status=VerdictStatus.OK if label else VerdictStatus.INVALID,
        score=score if label else None, label=label,
        cause=None if label else InvalidCause.TIMEOUT,
    )  # fmt: skip


def observe(
    to: ConstraintWeights, version: int, labels: Sequence[str | None], route: str = "search"
) -> None:
    to.observe(version, route, {"reliability": [said(label) for label in labels]}, [5] * 4)


def step(of: ConstraintWeights, number: int) -> tuple[float, str]:
    of.propose(number)
    stored = of.drain()[number]
    of.commit()
    return of.factors["reliability"], stored


def test_the_multiplicative_update_follows_the_violation_and_keeps_its_bounds() -> None:
    controller = weights()
    observe(controller, 0, [CERTAIN, RIGHT, UNSURE, UNSURE])
    weight, _ = step(controller, 1)
    assert weight == pytest.approx(0.1 * math.exp(0.2 * (0.25 - 0.05)))
    assert controller.metrics == {
        "constraint/certainty/lambda": weight,
        "constraint/certainty/rate": 0.25,
        "constraint/certainty/rate_among": pytest.approx(1 / 3),
    }
    observe(controller, 1, [RIGHT] * 4)
    lower, _ = step(controller, 2)
    assert lower == pytest.approx(weight * math.exp(-0.2 * 0.05))
    for number in range(3, 40):
        observe(controller, number - 1, [CERTAIN] * 4)
        weight, _ = step(controller, number)
    assert weight == 1.0
    for number in range(40, 700):
        observe(controller, number - 1, [RIGHT] * 4)
        weight, _ = step(controller, number)
    assert weight == 0.01, "the multiplicative form could not leave 0"


def test_dual_ascent_adds_and_may_reach_zero() -> None:
    controller = weights(update="dual_ascent")
    observe(controller, 0, [CERTAIN] * 4)
    assert step(controller, 1)[0] == pytest.approx(0.1 + 0.02 * 0.95)
    for number in range(2, 300):
        observe(controller, number - 1, [RIGHT] * 4)
        weight, _ = step(controller, number)
    assert weight == 0.0
    observe(controller, 299, [CERTAIN] * 4)
    assert step(controller, 300)[0] == pytest.approx(0.02 * 0.95)


def test_the_window_counts_the_versions_that_made_the_trajectories() -> None:
    controller = weights(window=2)
    observe(controller, 0, [CERTAIN] * 4)
    step(controller, 1)
    observe(controller, 1, [RIGHT] * 4)
    step(controller, 2)
    assert controller.metrics["constraint/certainty/rate"] == 0.5
    observe(controller, 1, [RIGHT] * 4)  # late, of an older version
    step(controller, 3)
    assert controller.metrics["constraint/certainty/rate"] == 0.0
    weight, _ = step(controller, 9)
    assert weight == controller.factors["reliability"]
    assert "constraint/certainty/rate" not in controller.metrics, "nothing was measured"
    before = weight
    assert step(controller, 10)[0] == before, "and nothing changes"


def test_a_failed_verdict_is_no_trajectory_and_other_routes_are_not_counted() -> None:
    rate = {"principle": "reliability", "labels": [CERTAIN], "routes": ["search"]}
    controller = weights(rate=rate)
    observe(controller, 0, [CERTAIN, None, None, RIGHT])
    observe(controller, 0, [CERTAIN] * 4, route="other")
    step(controller, 1)
    assert controller.metrics["constraint/certainty/rate"] == 0.5


def test_scores_and_lengths_are_rates_too() -> None:
    unsafe = weights(rate={"principle": "reliability", "below": 0.5})
    verdicts = [said("x", score) for score in (0.0, 0.4, 0.5, 1.0)]
    unsafe.observe(0, "r", {"reliability": verdicts}, [1] * 4)
    step(unsafe, 1)
    assert unsafe.metrics["constraint/certainty/rate"] == 0.5
    long = weights(rate={"token_limit": 100}, bound=1.0)
    long.observe(0, "r", {}, [50, 250])
    weight, _ = step(long, 1)
    assert long.metrics["constraint/certainty/rate"] == 1.5
    assert weight == pytest.approx(0.1 * math.exp(0.2 * 0.5))


def test_a_resumed_controller_goes_on_with_the_same_sequence() -> None:
    labels = [[CERTAIN, RIGHT], [RIGHT, RIGHT], [CERTAIN, CERTAIN], [UNSURE, RIGHT], [CERTAIN]]

    def go_on(controller: ConstraintWeights, first: int) -> list[tuple[float, str]]:
        found = []
        for number in range(first, len(labels) + 1):
            observe(controller, number - 1, labels[number - 1])
            found.append(step(controller, number))
        return found

    whole = go_on(weights(window=2), 1)
    for at in range(1, len(labels)):
        assert go_on(weights(stored=whole[at - 1][1], window=2), at + 1) == whole[at:]


def test_a_proposal_is_not_in_force_before_the_step_and_a_new_one_replaces_it() -> None:
    controller = weights()
    observe(controller, 0, [CERTAIN] * 4)
    controller.propose(1)
    assert controller.factors == {"reliability": 0.1}
    observe(controller, 0, [RIGHT] * 12)
    controller.propose(1)
    controller.commit()
    assert controller.metrics["constraint/certainty/rate"] == 0.25
    assert list(controller.drain()) == [1]


def test_what_was_observed_after_the_order_counts_for_the_next_step() -> None:
    controller = weights(window=2)
    observe(controller, 0, [RIGHT] * 4)
    controller.propose(1)
    observe(controller, 0, [CERTAIN] * 4)
    controller.commit()
    step(controller, 2)
    assert controller.metrics["constraint/certainty/rate"] == 0.5


@pytest.mark.parametrize("update", ["multiplicative", "dual_ascent"])
def test_a_lambda_that_is_not_finite_is_refused(update: str) -> None:
    controller = weights(update=update, eta=1e308, start=1.0, bound=0.0, rate={"token_limit": 1})
    controller.observe(0, "r", {}, [10**6])
    with pytest.raises(DivergedError, match="lambda is inf at step 1"):
        controller.propose(1)


def test_limits_that_have_changed_hold_at_once_and_what_is_new_starts() -> None:
    controller = weights()
    observe(controller, 0, [CERTAIN] * 4)
    _, stored = step(controller, 1)
    assert weights(stored=stored, max=0.1, start=0.1).factors == {"reliability": 0.1}
    other = ConstraintWeights({"new": constraint(start=0.5)}, 1, stored)
    assert other.factors == {"reliability": 0.5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": {"principle": "reliability"}}, "exactly one of `labels`, `below`"),
        ({"rate": {"labels": ["x"]}}, "need a `principle`"),
        ({"rate": {"token_limit": 4, "principle": "p"}}, "`token_limit` has none"),
        ({"start": 2.0}, "start 2 is not within 0.01 .. 1"),
        ({"eta": math.inf}, "finite"),
        ({"eta": -1.0}, "greater than 0"),
        ({"min": 0.0}, "greater than 0"),
    ],
)
def test_a_constraint_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        constraint(**changes)
