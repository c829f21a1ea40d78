"""The additive reward, and its refusal to invent numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.combine import combine_group, combine_rewards
from safeladder.config import RewardConfig
from safeladder.records import InvalidCause, Verdict, VerdictStatus

NAMES = st.sampled_from(["safety", "normal", "format", "rule"])
ROUTES = st.dictionaries(NAMES, st.tuples(st.floats(0.01, 10), st.floats(0, 1)), min_size=1)


def verdict(principle: str, score: float | None) -> Verdict:
    status = VerdictStatus.NOT_APPLICABLE if score is None else VerdictStatus.OK
    return Verdict(
        sample_id="0/0/0",
        principle=principle,
        verifier="v",
        verifier_version="1",
        status=status,
        score=score,
    )


def invalid(principle: str) -> Verdict:
    return Verdict(
        sample_id="0/0/0",
        principle=principle,
        verifier="v",
        verifier_version="1",
        status=VerdictStatus.INVALID,
        cause=InvalidCause.TIMEOUT,
    )


@given(ROUTES)
def test_the_reward_is_the_weighted_sum(route: dict[str, tuple[float, float]]) -> None:
    weights = {name: weight for name, (weight, _) in route.items()}
    verdicts = {name: verdict(name, score) for name, (_, score) in route.items()}
    expected = sum(weight * score for weight, score in route.values())
    assert math.isclose(combine_rewards(weights, verdicts), expected, abs_tol=1e-9)
    assert 0 <= combine_rewards(weights, verdicts) <= sum(weights.values()) + 1e-9


@given(ROUTES, st.data())
def test_a_term_that_does_not_apply_leaves_the_others_as_they_are(
    route: dict[str, tuple[float, float]], data: st.DataObject
) -> None:
    out = data.draw(st.sampled_from(sorted(route)))
    weights = {name: weight for name, (weight, _) in route.items()}
    verdicts = {n: verdict(n, None if n == out else score) for n, (_, score) in route.items()}
    rest = {name: weight for name, weight in weights.items() if name != out}
    if rest:
        assert combine_rewards(weights, verdicts) == combine_rewards(rest, verdicts)
    else:
        with pytest.raises(ValueError, match="no principle"):
            combine_rewards(weights, verdicts)


@given(ROUTES, st.data(), st.booleans())
def test_one_missing_or_invalid_verdict_leaves_no_number(
    route: dict[str, tuple[float, float]], data: st.DataObject, is_missing: bool
) -> None:
    broken = data.draw(st.sampled_from(sorted(route)))
    verdicts = {name: verdict(name, score) for name, (_, score) in route.items()}
    verdicts[broken] = invalid(broken)
    if is_missing:
        del verdicts[broken]
    with pytest.raises(ValueError, match=broken):
        combine_rewards({name: weight for name, (weight, _) in route.items()}, verdicts)


def test_verdicts_outside_the_route_do_not_count_and_mislabelled_ones_are_refused() -> None:
    verdicts = {"safety": verdict("safety", 0.5), "extra": invalid("extra")}
    assert combine_rewards({"safety": 2.0}, verdicts) == 1.0
    with pytest.raises(ValueError, match="one of 'normal'"):
        combine_rewards({"safety": 1.0}, {"safety": verdict("normal", 1.0)})


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        combine_rewards({"safety": math.inf}, {"safety": verdict("safety", 1.0)})
    both = {name: verdict(name, 1.0) for name in ("safety", "normal")}
    with pytest.raises(ValueError, match="not finite"):
        combine_rewards(dict.fromkeys(both, 1e308), both)


def sample(**scores: float | None) -> dict[str, Verdict]:
    return {principle: verdict(principle, score) for principle, score in scores.items()}


WEIGHTS = {"safety": 1.0, "normal": 2.0, "format": 0.5}


@pytest.mark.parametrize(
    ("rule", "scores", "expected"),
    [
        ({}, (0.5, 1.0, 0.0), 2.5),
        ({"gates": ("format",)}, (0.5, 1.0, 0.0), 0.0),
        ({"gates": ("format",)}, (0.5, 1.0, 0.5), 1.25),
        ({"combine": "worst_case"}, (0.5, 1.0, 0.2), 0.2),
        ({"combine": "worst_case", "gates": ("format",)}, (0.5, 1.0, 0.2), 0.1),
        ({"floors": {"safety": 0.4}}, (0.5, 1.0, 0.0), 2.5),
        ({"floors": {"safety": 0.6, "normal": 0.9}}, (0.5, 0.4, 1.0), -1.1),
    ],
)
def test_rules_by_hand(rule: dict[str, object], scores: tuple[float, ...], expected: float) -> None:
    verdicts = sample(**dict(zip(WEIGHTS, scores, strict=True)))
    found = combine_rewards(WEIGHTS, verdicts, RewardConfig.model_validate(rule))
    assert math.isclose(found, expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_a_sample_below_a_floor_never_outranks_one_above(scores: list[tuple[float, float]]) -> None:
    rule = RewardConfig(floors={"safety": 0.5})
    weights = {"safety": 1.0, "normal": 3.0}
    rewards = combine_group(weights, [sample(safety=s, normal=n) for s, n in scores], rule)
    below = [r for r, (s, _) in zip(rewards, scores, strict=True) if s < 0.5]
    above = [r for r, (s, _) in zip(rewards, scores, strict=True) if s >= 0.5]
    assert all(low < high for low in below for high in above)  # type: ignore[operator]


def test_decoupled_rewards_by_hand() -> None:
    # safety 0, 1, 1, 0: z = -1, 1, 1, -1; normal is the same everywhere and says nothing, although
    # the sum of both would let its weight count.
    siblings = [sample(safety=s, normal=1.0) for s in (0.0, 1.0, 1.0, 0.0)]
    rule = RewardConfig(combine="decoupled")
    assert combine_group({"safety": 2.0, "normal": 5.0}, siblings, rule) == (-2, 2, 2, -2)


def test_decoupled_rewards_give_rare_and_common_principles_one_scale() -> None:
    # One sibling in four keeps the format, three in four are safe: additive rewards would tie
    # (format, unsafe) with (safe, no format); decoupled ones rank the rare achievement higher.
    siblings = [sample(safety=s, format=f) for s, f in ((0.0, 1.0), (1, 0), (1, 0), (1, 0))]
    rewards = combine_group(
        {"safety": 1.0, "format": 1.0}, siblings, RewardConfig(combine="decoupled")
    )
    assert rewards == pytest.approx((0, 0, 0, 0), abs=1e-9)  # equal weights: they cancel out
    heavier = combine_group(
        {"safety": 1.0, "format": 2.0}, siblings, RewardConfig(combine="decoupled")
    )
    assert heavier == pytest.approx((math.sqrt(3), *[-1 / math.sqrt(3)] * 3))


def test_a_sibling_that_is_left_out_stays_out_and_does_not_count() -> None:
    siblings = [sample(safety=0.0), None, sample(safety=1.0)]
    for rule in (RewardConfig(), RewardConfig(combine="decoupled")):
        rewards = combine_group({"safety": 1.0}, siblings, rule)
        assert rewards[1] is None
        assert rewards[0] is not None
        assert rewards[0] < rewards[2]  # type: ignore[operator]


def test_decoupled_rewards_need_the_siblings() -> None:
    with pytest.raises(ValueError, match="combine_group"):
        combine_rewards({"safety": 1}, sample(safety=1.0), RewardConfig(combine="decoupled"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": ["safety"], "floors": {"safety": 0.5}}, "choose one"),
        ({"combine": "decoupled", "floors": {"safety": 0.5}}, "no floors"),
        ({"gates": ["safety", "format", "safety"]}, "gates names 'safety' twice"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig.model_validate(changes)


def test_gates_that_earn_add_their_own_term_within_the_product() -> None:
    """r_format x (0.1 r_format + 0.9 r_acc + lambda r_reliab)."""
    rule = RewardConfig(gates=("form",), gates_earn=True)
    weights = {"form": 0.1, "accuracy": 0.9, "reliability": 0.25}
    cases = {(1, 1, 1): 1.25, (1, 1, 0): 1.0, (1, 0, 1): 0.35, (1, 0, 0): 0.1, (0, 1, 1): 0.0}
    for scores, expected in cases.items():
        verdicts = {
            name: verdict(name, float(score)) for name, score in zip(weights, scores, strict=True)
        }
        assert combine_rewards(weights, verdicts, rule) == pytest.approx(expected)
    for fault in (
        {"gates_earn": True},
        {"gates_earn": True, "gates": ("a",), "combine": "decoupled"},
    ):
        with pytest.raises(ValueError, match="gates_earn needs combine: additive"):
            RewardConfig(**fault)
