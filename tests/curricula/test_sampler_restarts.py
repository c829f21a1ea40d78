"""Outcomes by version, and the same draws again after a restart."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from curricula.sampler import Sampler
from safeladder.curriculum_config import CurriculumConfig
from safeladder.draws import Draw, Passes
from safeladder.errors import ConfigError, NotResumableError
from safeladder.records import GroupKey, Prompt

from .sampler_play import (
    ADAPTIVE,
    GROUPS_PER_STEP,
    STAGED,
    Asked,
    by_constraints,
    config,
    prompts,
    solvable,
)

# ---- outcomes by version, and restarts


def by_chance(draw: Draw, version: int) -> float:
    return random.Random(f"{draw.prompt} {version}").random()


@pytest.mark.parametrize("schedule", ["staged", "mixed", "adaptive", "difficulty"])
def test_a_restored_sampler_draws_what_the_first_one_would_have(schedule: str) -> None:
    settings = {
        "staged": STAGED,
        "mixed": config(schedule="mixed"),
        "adaptive": ADAPTIVE,
        "difficulty": config(
            schedule="staged", bucket_by="difficulty", boundaries=[0.4], stage_steps=3
        ),
    }[schedule]
    rows, mix = by_constraints(50), {"rule": 1.0}
    run = Asked(Sampler(rows, settings, seed=5, mix=mix), by_chance)
    for steps in range(1, 14):
        run.steps(1)
        restored = Sampler(rows, settings, seed=5, mix=mix)
        restored.restore(run.history())
        key = list(run.draws)[-1]
        expected, found = [], []
        twin = Asked(Sampler(rows, settings, seed=5, mix=mix), by_chance)
        twin.steps(steps)
        for _ in range(12):
            key = restored.next_key(key)
            expected.append(twin.sampler.draw(key))
            found.append(restored.draw(key))
        assert found == expected


def test_outcomes_count_from_the_end_of_their_step_in_whatever_order_they_came() -> None:
    def played(order: int) -> list[Draw]:
        asked = Asked(Sampler(prompts(20), ADAPTIVE, seed=2), by_chance)
        for step in range(1, 20):
            keys = asked.draw(GROUPS_PER_STEP)
            random.Random(f"{order} {step}").shuffle(keys)
            asked.train(keys)
        return list(asked.draws.values())

    assert played(1) == played(2)


def test_an_outcome_that_is_heard_early_waits_for_its_step() -> None:
    early, late = (Sampler(prompts(6), ADAPTIVE, seed=2) for _ in range(2))
    keys = [GroupKey(0, n) for n in range(6)]
    for sampler in (early, late):
        for key in keys[:2]:
            sampler.draw(key)
    bad = Passes(0, 8, 0, {})
    early.end(keys[0], 2, bad)  # dropped while step 1 runs
    early.end(keys[1], 1, bad)
    late.end(keys[1], 1, bad)
    for sampler in (early, late):
        sampler.learn(1)
    assert early.draw(keys[2]) == late.draw(keys[2])
    late.end(keys[0], 2, bad)
    for sampler in (early, late):
        sampler.learn(2)
    assert early.draw(keys[3]) == late.draw(keys[3])


def test_groups_that_live_are_asked_the_same_again() -> None:
    run = Asked(Sampler(prompts(20), ADAPTIVE, seed=1), by_chance)
    run.steps(3)
    waiting = run.draw(5)
    restored = Sampler(prompts(20), ADAPTIVE, seed=1)
    restored.restore(run.history())
    assert [restored.prompt(key).id for key in waiting] == [run.draws[k].prompt for k in waiting]
    changed = Sampler(prompts(20)[::-1], ADAPTIVE, seed=1)
    with pytest.raises(NotResumableError, match=r"was asked 'rule-\d+', which is not row"):
        changed.restore(run.history())


def test_a_restored_sampler_forgets_what_it_was_before() -> None:
    run = Asked(Sampler(prompts(20), ADAPTIVE, seed=1), by_chance)
    run.steps(3)
    history = run.history()
    run.steps(5)
    run.sampler.restore(history)
    fresh = Sampler(prompts(20), ADAPTIVE, seed=1)
    fresh.restore(history)
    key = GroupKey(0, 12)
    assert run.sampler.draw(key) == fresh.draw(key)


def test_the_digest_changes_with_whatever_changes_a_draw_but_the_outcomes() -> None:
    rows = by_constraints(5)

    def digest(of: CurriculumConfig = ADAPTIVE, data: list[Prompt] = rows, **keys: Any) -> str:
        return Sampler(data, of, **{"seed": 0, **keys}).digest

    elsewhere = prompts(5, "math", num_constraints=lambda i: i)
    others = [
        digest(seed=1),
        digest(shuffle=False),
        digest(mix={"rule": 1.0}),
        digest(weights=[1, 1, 1, 1, 2]),
        digest(STAGED),
        digest(data=rows[::-1]),
        digest(data=elsewhere),
    ]
    assert len({digest(), *others}) == len(others) + 1
    learned = Asked(Sampler(rows, ADAPTIVE, seed=0), by_chance)
    learned.steps(2)
    assert learned.sampler.digest == digest()


def test_the_next_run_starts_from_what_this_one_knows() -> None:
    run = Asked(Sampler(prompts(60), ADAPTIVE, seed=0), solvable)
    run.steps(100)
    carried = json.loads(json.dumps(run.sampler.dump()))
    next_rung = Sampler(prompts(60), ADAPTIVE, seed=1)
    next_rung.load(carried)
    draws = Asked(next_rung, solvable).steps(3)
    assert Counter(d.row % 3 for d in draws if d.why == "focus")[1] >= 9
    assert next_rung.digest != Sampler(prompts(60), ADAPTIVE, seed=1).digest
    for damaged in ({}, [], {**carried, "format": 9}, {**carried, "rows": {"a": [2, 1]}}):
        with pytest.raises(ConfigError, match="holds no state of a curriculum"):
            Sampler(prompts(60), ADAPTIVE, seed=1).load(damaged)
