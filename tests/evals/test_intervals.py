import numpy as np
import pytest

from evals.intervals import paired_bootstrap, wilson


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_interval_holds_the_difference_and_agrees_with_the_normal_approximation() -> None:
    before = np.repeat([0.0, 0.0, 1.0, 1.0], [120, 40, 10, 130])
    after = np.repeat([0.0, 1.0, 0.0, 1.0], [120, 40, 10, 130])
    difference = after - before
    low, high = paired_bootstrap(before, after, rng())
    half = 1.96 * difference.std() / np.sqrt(difference.size)
    assert low == pytest.approx(difference.mean() - half, abs=0.006)
    assert high == pytest.approx(difference.mean() + half, abs=0.006)


def test_pairing_matters() -> None:
    before, after = np.tile([0.0, 1.0], 50), np.tile([0.0, 1.0], 50)
    assert paired_bootstrap(before, after, rng()) == (0.0, 0.0)
    low, high = paired_bootstrap(before, after[::-1], rng())
    assert low < -0.1 < 0.1 < high


def test_the_same_seed_gives_the_same_interval() -> None:
    before, after = rng().integers(0, 2, 80), rng().integers(0, 2, 80)[::-1]
    assert paired_bootstrap(before, after, rng()) == paired_bootstrap(before, after, rng())


def test_about_95_of_100_intervals_hold_the_true_difference() -> None:
    source, held = np.random.default_rng(1), 0
    for _ in range(200):
        before = (source.random(100) < 0.3).astype(float)
        after = (source.random(100) < 0.6).astype(float)
        low, high = paired_bootstrap(before, after, source, resamples=500)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([0.0], [0.0, 1.0]), ([[0.0]], [[1.0]]), ([np.nan], [1.0])]
)
def test_what_is_no_pairing_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs must be|not finite"):
        paired_bootstrap(before, after, rng())


def test_wilson_bounds_solve_their_quadratic_and_stay_in_range() -> None:
    for successes, trials in ((0, 5), (3, 7), (150, 303), (9, 9)):
        share = successes / trials
        for bound in wilson(successes, trials):
            assert 0 <= bound <= 1
            error = 1.959964 * np.sqrt(bound * (1 - bound) / trials)
            assert abs(share - bound) == pytest.approx(error, abs=1e-6)
    assert wilson(0, 5)[0] == pytest.approx(0)
    assert wilson(9, 9)[1] == pytest.approx(1)
    low, high = wilson(3, 7, level=0.5)
    assert wilson(3, 7)[0] < low < high < wilson(3, 7)[1]


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_shares_that_are_none_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(successes, trials)
