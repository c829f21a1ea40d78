"""The additive reward, and its refusal to invent numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.combine import combine_rewards
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
