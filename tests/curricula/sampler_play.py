"""Draws of a sampler and made-up outcomes, for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from curricula.sampler import Sampler
from safeladder.curriculum_config import CurriculumConfig
from safeladder.draws import Draw, DrawHistory, Outcome, Passes
from safeladder.records import GroupKey, Message, Prompt

GROUPS_PER_STEP = 4
SIBLINGS = 8


def prompts(count: int, route: str = "rule", **meta: Callable[[int], Any]) -> list[Prompt]:
    return [
        Prompt(
            id=f"{route}-{i}",
            messages=(Message("user", f"q{i}"),),
            route=route,
            meta={name: of(i) for name, of in meta.items()},
        )
        for i in range(count)
    ]


def by_constraints(count: int) -> list[Prompt]:
    return prompts(count, num_constraints=lambda i: i % 5 + 1)


class Asked:
    """A run in small: draws, and outcomes at the end of steps."""

    def __init__(self, sampler: Sampler, passes: Callable[[Draw, int], float]) -> None:
        self.sampler = sampler
        self._passes = passes
        """(draw, version) → share of siblings that pass."""
        self.draws: dict[GroupKey, Draw] = {}
        self.outcomes: list[Outcome] = []
        self.step = 0
        self._key: GroupKey | None = None

    def draw(self, count: int) -> list[GroupKey]:
        keys = []
        for _ in range(count):
            self._key = self.sampler.next_key(self._key)
            self.draws[self._key] = self.sampler.draw(self._key)
            keys.append(self._key)
        return keys

    def train(self, keys: list[GroupKey]) -> None:
        self.step += 1
        for key in keys:
            draw = self.draws[key]
            passed = round(SIBLINGS * self._passes(draw, self.step - 1))
            passes = Passes(self.step - 1, SIBLINGS, passed, {})
            self.sampler.end(key, self.step, passes)
            self.outcomes.append(Outcome(self.step, key, draw.row, passes))
        self.sampler.learn(self.step)

    def steps(self, count: int) -> list[Draw]:
        """The draws of so many synchronous steps."""
        keys = []
        for _ in range(count):
            step = self.draw(GROUPS_PER_STEP)
            self.train(step)
            keys += step
        return [self.draws[key] for key in keys]

    def history(self) -> DrawHistory:
        """As a ledger would have it."""
        ended = {one.key for one in self.outcomes}
        return DrawHistory(
            asked=Counter(draw.row for draw in self.draws.values()),
            reasons=Counter((draw.label, draw.why) for draw in self.draws.values()),
            living={k: d for k, d in self.draws.items() if k not in ended},
            outcomes=tuple(self.outcomes),
            version=self.step,
        )


def config(**keys: Any) -> CurriculumConfig:
    return CurriculumConfig.model_validate(keys)


STAGED = config(schedule="staged", bucket_by="num_constraints", boundaries=[3.0], stage_steps=10)
ADAPTIVE = config(schedule="adaptive")


def always(share: float) -> Callable[[Draw, int], float]:
    return lambda draw, version: share


def solvable(draw: Draw, version: int) -> float:
    """A third never passes, a third always, a third half of the time."""
    return (0.0, 0.5, 1.0)[draw.row % 3]
