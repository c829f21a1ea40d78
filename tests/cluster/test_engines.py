"""Which engine gets the next lease, and which must load."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from cluster.engines import LOAD_DEADLINE_S, LOAD_RETRY_S, EngineTable
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.records import GroupKey

GROUP_SIZE = 4


def admit_all(_: int) -> int:
    return 10**9


def profile(*speeds: tuple[int, float], kv_tokens: int = 10**6) -> EngineProfile:
    return EngineProfile(kv_tokens=kv_tokens, max_sequences=400, speeds=speeds)


def table(**engines: EngineProfile | None) -> EngineTable:
    """Engines that serve version 0."""
    engine_table = EngineTable(GROUP_SIZE)
    for name, measured in engines.items():
        engine_table.join(name, 100, measured, 1000)
        engine_table.serving(name, 0, 0.0)
    return engine_table


def grant(engines: EngineTable, count: int) -> Counter[str]:
    """Who gets the next leases."""
    granted: Counter[str] = Counter()
    held = sum(len(engine.leases) for engine in engines.all)
    for i in range(held, held + count):
        engine = engines.next_free(0, admit_all)
        assert engine is not None
        engines.grant(engine.name, GroupKey(0, i))
        granted[engine.name] += 1
    return granted


def test_equal_engines_get_equally_much() -> None:
    assert grant(table(a=None, b=None, c=None), 30) == {"a": 10, "b": 10, "c": 10}


def test_an_engine_four_times_as_fast_gets_four_times_as_much() -> None:
    slow, fast = profile((1, 10.0), (64, 100.0)), profile((1, 40.0), (64, 400.0))
    engines = table(slow=slow, fast=fast)
    assert grant(engines, 12) == {"fast": 12}  # its batch is not full yet
    granted = grant(engines, 68)
    assert 12 + granted["fast"] == pytest.approx(4 * granted["slow"], rel=0.1)


def test_a_batch_costs_little_until_it_is_full() -> None:
    """``flat`` makes no more tokens with more sequences; ``wide``, slower alone, overtakes."""
    engines = table(flat=profile((1, 100.0)), wide=profile((4, 50.0), (64, 800.0)))
    assert next(iter(grant(engines, 1))) == "flat"
    assert grant(engines, 8) == {"wide": 7, "flat": 1}


@pytest.mark.parametrize(
    ("sequences", "expected"), [(1, 10.0), (8, 80.0), (12, 90.0), (16, 100.0), (200, 100.0)]
)
def test_a_speed_is_read_between_what_was_measured(sequences: int, expected: float) -> None:
    assert profile((8, 80.0), (16, 100.0)).tokens_per_s(sequences) == pytest.approx(expected)


def test_a_profile_survives_its_row() -> None:
    measured = profile((1, 10.0), (64, 100.0))
    assert EngineProfile.from_row(measured.as_row()) == measured


def test_the_fastest_engine_waits_for_its_version_and_an_older_one_keeps_its_head_room() -> None:
    engines = table(fast=profile((1, 900.0)), slow=profile((1, 10.0)))
    engines.serving("slow", 1, 0.0)
    limits = {0: 10, 1: 20}
    assert engines.next_free(9, limits.__getitem__).name == "fast"  # type: ignore[union-attr]
    assert engines.next_free(10, limits.__getitem__).name == "slow"  # type: ignore[union-attr]
    assert engines.next_free(20, limits.__getitem__) is None


def test_a_full_engine_gets_nothing_until_a_group_is_back() -> None:
    engines = EngineTable(GROUP_SIZE)
    engines.join("a", 1, None, 1000)
    engines.serving("a", 0, 0.0)
    grant(engines, 1)
    assert engines.next_free(1, admit_all) is None
    engines.free("a", GroupKey(0, 0))
    assert engines.next_free(1, admit_all) is not None


def test_a_cache_under_pressure_stops_the_next_lease() -> None:
    engines = table(a=profile(kv_tokens=8_000))
    grant(engines, 7)
    pressed = EngineLoad(kv_share=0.99, running=28, waiting=0, preemptions=0)
    engines.note_load("a", pressed)
    assert engines.next_free(7, admit_all) is None
    engines.finish("a", GroupKey(0, 0))
    engines.finish("a", GroupKey(0, 1))
    engines.finish("a", GroupKey(0, 2))
    assert engines.next_free(4, admit_all) is not None


def test_an_engine_that_leaves_gets_nothing_even_if_it_is_the_only_one() -> None:
    engines = table(a=None)
    grant(engines, 2)
    assert engines.leave("a") == [GroupKey(0, 0), GroupKey(0, 1)]
    engines.free("a", GroupKey(0, 0))
    assert engines.next_free(1, admit_all) is None


def test_a_lost_engine_and_its_namesake_are_two() -> None:
    engines = table(a=None, b=None)
    grant(engines, 2)
    assert engines.lose("a") == [GroupKey(0, 0)]
    engines.join("a", 100, None, 1000)  # serves nothing yet
    assert grant(engines, 3) == {"b": 3}


def test_each_engine_is_asked_once_to_load_and_again_after_its_deadline() -> None:
    engines = table(a=None, b=None)
    assert engines.start_loads(0, 1.0) == []
    assert engines.start_loads(1, 1.0) == ["a", "b"]
    assert engines.start_loads(1, 2.0) == []
    assert engines.serving("a", 1, 2.0) is None
    assert engines.start_loads(1, 1.0 + LOAD_DEADLINE_S) == ["b"]


def test_a_load_that_fell_short_is_tried_again_a_little_later() -> None:
    engines = table(a=None)
    engines.start_loads(2, 0.0)
    assert engines.serving("a", 1, 1.0) == 2
    assert engines.start_loads(2, 1.0) == []
    assert engines.start_loads(2, 1.0 + LOAD_RETRY_S) == ["a"]


def test_thousands_of_engines_cost_no_more_for_a_lease_than_a_few() -> None:
    """A ratio of times: with the cost of a scan it would be about 256."""

    def seconds(num_engines: int) -> float:
        engines = table(**{f"e{i}": None for i in range(num_engines)})
        started = time.perf_counter()
        for i in range(2000):
            engine = engines.next_free(i, admit_all)
            assert engine is not None
            engines.grant(engine.name, GroupKey(0, i))
            engines.finish(engine.name, GroupKey(0, i))
            engines.start_loads(0, 0.0)
        return time.perf_counter() - started

    assert min(seconds(4096) for _ in range(3)) < 20 * min(seconds(16) for _ in range(3))


def test_a_group_moves_only_to_where_it_is_no_slower() -> None:
    slow, fast = profile((1, 10.0), (64, 100.0)), profile((1, 40.0), (64, 400.0))
    engines = table(slow=slow, fast=fast)
    engines.grant("slow", GroupKey(0, 0))
    engines.grant("fast", GroupKey(0, 1))
    assert engines.num_free_beside("slow") == 99
    assert engines.num_free_beside("fast") == 0
    engines.leave("fast")
    assert engines.num_free_beside("slow") == engines.num_free_beside("gone") == 0


def test_an_engine_that_is_avoided_is_taken_only_if_there_is_no_other() -> None:
    engines = table(slow=profile((1, 10.0)), fast=profile((1, 40.0)))

    def chosen(avoid: str | None) -> str:
        engine = engines.next_free(0, admit_all, avoid)
        assert engine is not None
        return engine.name

    assert [chosen(avoid) for avoid in (None, "slow", "fast", None)] == [
        "fast", "fast", "slow", "fast",
    ]  # fmt: skip
    engines.lose("slow")
    assert [chosen("fast"), chosen("fast")] == ["fast", "fast"]
