"""Response lengths: the mean that was asked for, a tail, and a cap."""

import random

import pytest

from cluster.length_distribution import LogNormalLengths, MeasuredLengths, longest_of


@pytest.mark.parametrize(("mean", "cap"), [(500.0, 8192), (3000.0, 4096), (6.0, 1000)])
def test_draws_have_the_mean_that_was_asked_for_after_the_cut(mean: float, cap: int) -> None:
    rng = random.Random(1)
    lengths = LogNormalLengths(mean=mean, cap=cap, sigma=1.0)
    drawn = [lengths.draw(rng) for _ in range(40_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mean, rel=0.03)
    assert 1 <= min(drawn) <= max(drawn) <= cap


def test_the_longest_of_many_is_many_times_the_mean() -> None:
    lengths = LogNormalLengths(mean=1000, cap=10**6, sigma=0.6)
    rng = random.Random(2)
    longest = sorted(max(lengths.draw(rng) for _ in range(1000)) for _ in range(51))[25]
    assert longest_of(lengths, 1000) == pytest.approx(longest, rel=0.1)
    assert 7 < longest_of(lengths, 10_000) / 1000 < 9


def test_measured_lengths_are_drawn_again() -> None:
    lengths = MeasuredLengths([5, 1, 9])
    assert lengths.mean == 5
    assert (lengths.quantile(0.01), lengths.quantile(0.5), lengths.quantile(0.99)) == (1, 5, 9)
    assert {lengths.draw(random.Random(seed)) for seed in range(50)} == {1, 5, 9}


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="a mean of 100 tokens must be from 1 to below 100"):
        LogNormalLengths(mean=100, cap=100)
    with pytest.raises(ValueError, match="sigma"):
        LogNormalLengths(mean=10, cap=100, sigma=0)
    with pytest.raises(ValueError, match="one or more"):
        MeasuredLengths([])
