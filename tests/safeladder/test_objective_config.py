"""Which off-policy corrections fit which loss, and what is in force if nothing is said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from safeladder.objective_config import ObjectiveConfig


def objective(loss: str, epsilon: float = 0.2, **off_policy: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(
        {"policy_loss": loss, "clip_epsilon": epsilon, "off_policy": off_policy}
    )


@pytest.mark.parametrize(
    ("loss", "off_policy", "correction", "bounds"),
    [
        ("cpg", {}, "clip", (0.7, 1.3)),
        ("cpg", {"correction": "truncate"}, "truncate", (0.0, 2.0)),
        ("cpg", {"correction": "mask", "high": 3.0}, "mask", (0.5, 3.0)),
        ("ppo_clip", {}, "none", (1.0, 1.0)),
        ("ppo_clip", {"anchor": "proximal"}, "truncate", (0.0, 2.0)),
        ("ppo_clip", {"anchor": "proximal", "correction": "mask"}, "mask", (0.5, 5.0)),
    ],
)
def test_what_is_in_force_follows_from_loss_and_anchor(
    loss: str, off_policy: dict[str, Any], correction: str, bounds: tuple[float, float]
) -> None:
    found = objective(loss, epsilon=0.3, **off_policy)
    assert found.correction == correction
    assert found.ratio_bounds == pytest.approx(bounds)


@pytest.mark.parametrize(
    ("loss", "off_policy", "reason"),
    [
        ("ppo_clip", {"correction": "truncate"}, "weight tokens twice.*anchor: proximal"),
        ("ppo_clip", {"anchor": "proximal", "correction": "none"}, "forgets which policy sampled"),
        ("cpg", {"correction": "none", "level": "sequence"}, "off_policy.level does nothing"),
        ("ppo_clip", {"tokens": "all"}, "off_policy.tokens does nothing"),
        ("ppo_clip", {"high": 2.0}, "off_policy.high does nothing"),
        ("cpg", {"correction": "truncate", "low": 0.5}, "truncate has no lower bound"),
        ("cpg", {"correction": "mask", "level": "geometric", "low": 0.9}, "needs its own bounds"),
        ("cpg", {"correction": "truncate", "level": "geometric"}, "needs its own bounds"),
        ("cpg", {"low": 1.1}, "less than or equal to 1"),
        ("cpg", {"high": 0.9}, "greater than or equal to 1"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_reason(
    loss: str, off_policy: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        objective(loss, **off_policy)


def test_a_geometric_level_with_bounds_is_taken() -> None:
    assert objective("cpg", level="geometric", low=0.9, high=1.1).ratio_bounds == (0.9, 1.1)
    truncated = objective("cpg", correction="truncate", level="geometric", high=1.1)
    assert truncated.ratio_bounds == (0.0, 1.1)
