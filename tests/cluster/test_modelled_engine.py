"""Continuous batching against times worked out by hand, and against a slow plain version."""

import math
import random

import pytest

from cluster.modelled_engine import DecodeCurve, ModelledEngine
from safeladder.records import GroupKey

CURVE = DecodeCurve.linear(0.8, 0.2)  # one sequence: 1 s a token, two: 1.2 s, three: 1.4 s


def engine_of(max_sequences: int = 8) -> ModelledEngine:
    return ModelledEngine("e", CURVE, max_sequences, 0.0)


def ends(engine: ModelledEngine) -> dict[int, float]:
    """Ordinal of each lease → when it ended, with nothing else happening."""
    found = {}
    while (end_s := engine.next_end_s()) < math.inf:
        for work in engine.advance(end_s):
            found[work.key.ordinal] = end_s
    return found


def test_one_sequence_takes_its_length_times_the_iteration() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [10])
    assert ends(engine) == {0: pytest.approx(10.0)}
    assert engine.busy_s == pytest.approx(10.0)


def test_sequences_slow_each_other_down_until_the_shorter_one_ends() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [10])
    engine.begin(GroupKey(0, 1), 1, 1, [4])
    assert ends(engine) == {1: pytest.approx(4 * 1.2), 0: pytest.approx(4 * 1.2 + 6 * 1.0)}


def test_a_group_ends_with_its_last_sequence() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [2, 5])
    assert engine.num_groups == 1
    assert ends(engine) == {0: pytest.approx(2 * 1.2 + 3 * 1.0)}
    assert engine.num_groups == 0


def test_what_finds_no_place_waits() -> None:
    engine = engine_of(max_sequences=1)
    engine.begin(GroupKey(0, 0), 1, 1, [3, 2])
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    assert ends(engine) == {0: pytest.approx(5.0)}


def test_a_pause_shifts_what_runs_and_is_no_work() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [10])
    engine.advance(4.0)
    engine.pause(3.0)
    assert engine.next_end_s() == pytest.approx(13.0)
    assert ends(engine) == {0: pytest.approx(13.0)}
    assert (engine.busy_s, engine.paused_s) == (pytest.approx(10.0), pytest.approx(3.0))


def test_a_sequence_bears_the_version_that_was_served_when_it_began() -> None:
    engine = engine_of(max_sequences=1)
    engine.begin(GroupKey(0, 0), 1, 1, [2])
    engine.begin(GroupKey(0, 1), 1, 1, [2])
    engine.advance(1.0)
    engine.served = 7
    versions = [work.min_version for work in (*engine.advance(2.0), *engine.advance(4.0))]
    assert versions == [0, 7]


def test_the_cache_holds_what_running_sequences_have_made() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [10, 2])
    engine.advance(2 * 1.2 + 3.0)
    assert engine.tokens_held == pytest.approx(5.0)  # the shorter one is gone


def test_sequences_of_equal_length_end_together() -> None:
    engine = engine_of()
    engine.begin(GroupKey(0, 0), 1, 1, [4, 4, 4])
    assert ends(engine) == {0: pytest.approx(4 * 1.4)}


def test_what_is_stopped_frees_its_place_and_goes_on_where_it_was() -> None:
    engine = engine_of(max_sequences=2)
    engine.begin(GroupKey(0, 0), 1, 1, [4, 9])
    engine.begin(GroupKey(0, 1), 1, 1, [10])
    engine.advance(6 * 1.2)  # the first sequence ended after 4 tokens
    stopped = engine.stop(GroupKey(0, 0), 1)
    assert stopped is not None
    work, left = stopped
    assert (work.lengths, left) == ((4, 9), [3])
    assert engine.stop(GroupKey(0, 0), 1) is None
    assert (engine.num_groups, engine.num_running) == (1, 1)
    assert engine.tokens_held == pytest.approx(2)
    assert ends(engine) == {1: pytest.approx(7.2 + 8)}
    engine.take(work, left)
    assert ends(engine) == {0: pytest.approx(15.2 + 3)}


def test_it_agrees_with_one_that_goes_token_by_token() -> None:
    rng = random.Random(5)
    arrivals = sorted((rng.randint(0, 60), rng.randint(1, 30)) for _ in range(40))
    engine = engine_of(max_sequences=6)
    found: dict[int, float] = {}
    for number, (at_s, length) in enumerate(arrivals):
        while engine.next_end_s() <= at_s:
            end_s = engine.next_end_s()
            found |= {work.key.ordinal: end_s for work in engine.advance(end_s)}
        engine.advance(at_s)
        engine.begin(GroupKey(0, number), 1, 1, [length])
    found |= ends(engine)
    assert found == pytest.approx(slow_ends(arrivals, 6), abs=0.2)


def slow_ends(arrivals: list[tuple[int, int]], max_sequences: int) -> dict[int, float]:
    """In steps of a millisecond, each of which gives every running sequence its part of a token."""
    now_s, left, waiting = 0.0, dict[int, float](), list(enumerate(arrivals))
    found: dict[int, float] = {}
    while waiting or left:
        while waiting and waiting[0][1][0] <= now_s and len(left) < max_sequences:
            number, (_, length) = waiting.pop(0)
            left[number] = float(length)
        part = 0.001 / CURVE.iteration_s(len(left)) if left else 0.0
        now_s += 0.001
        for number in list(left):
            left[number] -= part
            if left[number] <= 0:
                del left[number]
                found[number] = now_s
    return found


def test_a_curve_goes_through_what_was_measured() -> None:
    curve = DecodeCurve.from_profile({1: 50.0, 4: 160.0, 16: 400.0})
    assert curve.tokens_per_s(4) == pytest.approx(160.0)
    assert curve.iteration_s(10) == pytest.approx((0.025 + 0.040) / 2)
    assert curve.iteration_s(28) == pytest.approx(0.055)  # goes on with the last slope
    assert curve.tokens_per_s(0) == 0.0


def test_an_iteration_never_counts_as_shorter_with_more_sequences() -> None:
    curve = DecodeCurve.from_profile({1: 50.0, 2: 120.0, 4: 160.0})
    assert curve.iteration_s(1) == curve.iteration_s(2) == 0.02


@pytest.mark.parametrize("points", [(), ((0, 1.0),), ((2, 1.0), (1, 2.0)), ((1, 2.0), (2, 1.0))])
def test_impossible_curves_are_refused(points: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="sequences"):
        DecodeCurve(points)


def test_a_rate_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="4 sequences at 0"):
        DecodeCurve.from_profile({4: 0.0})
