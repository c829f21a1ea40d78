"""How many groups an engine holds, against a simulated engine with a cache."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cluster.group_limit import HIGH_WATER, GroupLimit
from safeladder.engine_profile import EngineLoad, EngineProfile

GROUP_SIZE = 8
PROMPT_TOKENS = 100


def profile(kv_tokens: int, max_sequences: int = 10_000) -> EngineProfile:
    return EngineProfile(kv_tokens=kv_tokens, max_sequences=max_sequences)


def load(kv_share: float, *, waiting: int = 0, preemptions: int = 0) -> EngineLoad:
    return EngineLoad(kv_share=kv_share, running=0, waiting=waiting, preemptions=preemptions)


@dataclass
class SimulatedEngine:
    """Makes a token for each running group at a time; the youngest one is preempted when the cache
    is full, and waits until there is room for it again."""

    kv_tokens: int
    rng: random.Random
    mean_tokens: int
    running: list[list[int]] = field(default_factory=list)
    """[tokens made, tokens to make] of each sibling, oldest group first."""
    waiting: list[list[int]] = field(default_factory=list)
    preemptions: int = 0
    finished: int = 0
    wasted: int = 0

    @property
    def held_tokens(self) -> int:
        return sum(PROMPT_TOKENS + GROUP_SIZE * made for made, _ in self.running)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(
            kv_share=min(1.0, self.held_tokens / self.kv_tokens),
            running=GROUP_SIZE * len(self.running),
            waiting=GROUP_SIZE * len(self.waiting),
            preemptions=self.preemptions,
        )

    def give(self) -> None:
        self.waiting.append([0, 1 + int(self.rng.expovariate(1 / self.mean_tokens))])

    def step(self) -> int:
        """Returns how many groups are done."""
        while self.waiting and self.held_tokens + PROMPT_TOKENS < self.kv_tokens:
            self.running.append(self.waiting.pop(0))
        for group in self.running:
            group[0] += 1
        while self.held_tokens > self.kv_tokens:
            victim = self.running.pop()
            self.preemptions += 1
            self.wasted += victim[0]
            self.waiting.insert(0, [0, victim[1]])
        done = sum(made >= wanted for made, wanted in self.running)
        self.running = [group for group in self.running if group[0] < group[1]]
        self.finished += done
        return done


def play(engine: SimulatedEngine, limit: GroupLimit, steps: int) -> list[int]:
    """Keep the engine as full as the limit allows; the limit over time."""
    held, limits = 0, []
    for step in range(steps):
        while held < limit.value:
            engine.give()
            held += 1
        for _ in range(engine.step()):
            limit.note(engine.load, held)
            limit.finished(held)
            held -= 1
        if step % 20 == 0:
            limit.note(engine.load, held)
        limits.append(limit.value)
    return limits


@pytest.mark.parametrize("kv_tokens", [40_000, 200_000])
def test_the_limit_finds_what_the_cache_bears(kv_tokens: int) -> None:
    """Twice as long answers were to be expected as there are: it starts too low and grows."""
    engine = SimulatedEngine(kv_tokens, random.Random(1), mean_tokens=200)
    expected = PROMPT_TOKENS + GROUP_SIZE * 1000
    limits = play(engine, GroupLimit(None, profile(kv_tokens), GROUP_SIZE, expected), 6000)
    settled = limits[3000:]
    fits = kv_tokens / (PROMPT_TOKENS + GROUP_SIZE * 200)
    assert limits[0] < 0.5 * fits
    assert 0.5 * fits < sum(settled) / len(settled) < 1.6 * fits
    made = engine.finished * 200
    assert engine.wasted < 0.1 * made


def test_an_overestimated_cache_is_found_out() -> None:
    """The profile claims ten times the cache there is: preemptions bring the limit down."""
    engine = SimulatedEngine(40_000, random.Random(1), mean_tokens=200)
    limits = play(engine, GroupLimit(None, profile(400_000), GROUP_SIZE, 1700), 6000)
    fits = 40_000 / (PROMPT_TOKENS + GROUP_SIZE * 200)
    assert limits[0] > 8 * fits
    assert max(limits[3000:]) < 2.5 * fits


def test_the_cap_is_never_exceeded() -> None:
    engine = SimulatedEngine(200_000, random.Random(1), mean_tokens=50)
    limits = play(engine, GroupLimit(5, profile(200_000), GROUP_SIZE, 1000), 2000)
    assert max(limits) == 5


def test_without_a_profile_the_cap_is_the_limit_whatever_is_reported() -> None:
    limit = GroupLimit(6, None, GROUP_SIZE, 1000)
    limit.note(load(1.0, preemptions=3), held=6)
    limit.finished(held=6)
    assert limit.value == 6


def test_it_starts_with_no_more_than_one_batch() -> None:
    limit = GroupLimit(None, profile(10**9, max_sequences=60), GROUP_SIZE, 1000)
    assert limit.value == 8  # the eighth group is decoded in part


def test_pressure_takes_a_quarter_off_once_and_not_for_every_report_of_it() -> None:
    limit = GroupLimit(None, profile(16_000), GROUP_SIZE, 1000)
    assert limit.value == 16
    limit.note(load(0.5, preemptions=1), held=16)
    limit.note(load(HIGH_WATER + 0.01, preemptions=2), held=15)
    assert limit.value == 12
    limit.note(load(HIGH_WATER + 0.01, preemptions=2), held=12)
    assert limit.value == 9


def test_it_does_not_grow_while_something_else_holds_the_engine_back() -> None:
    limit = GroupLimit(None, profile(4_000), GROUP_SIZE, 1000)
    limit.note(load(0.1), held=2)
    limit.finished(held=2)
    assert limit.value == 4
    limit.finished(held=4)
    assert limit.value == 5
    limit.note(load(0.1, waiting=1), held=5)
    limit.finished(held=5)
    assert limit.value == 5


def test_one_group_is_always_allowed() -> None:
    limit = GroupLimit(None, profile(10), GROUP_SIZE, 1000)
    limit.note(load(1.0, preemptions=9), held=1)
    assert limit.value == 1
