"""A run in synchronous mode that is killed anywhere asks what the run asks that nobody kills."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.protocol import GrantLease, Score, Train
from curricula.sampler import Sampler
from safeladder.config import Config, CurriculumConfig
from safeladder.records import GroupKey, Message, Prompt

from .coordinator_play import Play, make_config

STEPS = 10
SIBLINGS = 4
SCHEDULES: dict[str, dict[str, Any]] = {
    "adaptive": {"schedule": "adaptive", "decay": 0.7, "rehearsal": 0.3},
    "pairs": {"schedule": "adaptive", "decay": 0.7, "together": "pair"},
    "by column": {
        "schedule": "staged", "bucket_by": "n", "boundaries": [4.0, 9.0], "advance_at": 0.45,
    },
    "by difficulty": {
        "schedule": "staged", "bucket_by": "difficulty", "boundaries": [0.5], "stage_steps": 4,
        "decay": 0.7,
    },
}  # fmt: skip


class Driver:
    """Plays a run until it is killed; the answers are a function of prompt, version and index."""

    def __init__(self, config: Config, ledger: Ledger, checkpoint: int, dies_after: int) -> None:
        self._ledger = ledger
        self._fence = ledger.raise_fence(checkpoint)
        self._left = dies_after
        rows = [
            Prompt(
                id=f"p{n}",
                messages=(Message("user", "q"),),
                route="safety",
                meta={"n": n % 12, "pair": n // 3},
            )
            for n in range(25)
        ]
        self._play = Play(
            config,
            prompts=Sampler(rows, config.curriculum, seed=7),
            fence=self._fence,
            restored=ledger.snapshot(),
        )
        self._asked: dict[GroupKey, str] = {}
        self.committed = checkpoint
        self._play.publish(checkpoint, "rollout-0")

    def run(self) -> bool:
        """True if it came to its end."""
        order = random.Random(self._left)
        while self.committed < STEPS:
            if not self._write():
                return False
            play = self._play
            grants, calls = play.take(GrantLease), play.take(Score)
            order.shuffle(grants)  # who answers first is chance
            for grant in grants:
                self._asked[grant.lease.key] = grant.lease.prompt.id
                play.generate(grant, self.committed)
            order.shuffle(calls)
            for call in calls:
                play.judge(call, [self._score(call, index) for index in call.indexes])
            if any(isinstance(command, Train) for command in play.open):
                if not self._write():
                    return False
                play.commit()
                self.committed += 1
                play.publish(self.committed, "rollout-0")
        return self._write()

    def _write(self) -> bool:
        """Commit to the ledger, unless this is where the driver dies."""
        self._left -= 1
        if self._left < 0:
            return False
        self._ledger.apply(self._play.transitions, self._fence)
        self._play.transitions.clear()
        return True

    def _score(self, call: Score, index: int) -> float:
        prompt = self._asked[call.key]
        easy = (int(prompt[1:]) % 5) / 4  # of five prompts one never and one always passes
        return float(random.Random(f"{prompt} {self.committed} {index}").random() < easy)


def played(schedule: str, kills: list[int], every: int = 1) -> list[object]:
    """All draws of a run whose drivers die after so many commits."""
    config = make_config(
        run={"steps": STEPS},
        rollout={"group_size": SIBLINGS, "max_concurrent_groups": 100},
        schedule={"groups_per_step": 3, "max_staleness": 0},
        curriculum=SCHEDULES[schedule],
    )
    assert config.curriculum == CurriculumConfig.model_validate(SCHEDULES[schedule])
    checkpoint = 0
    with Ledger.open(None, "play") as ledger:
        for dies_after in [*kills, 10**9]:
            driver = Driver(config, ledger, checkpoint, dies_after)
            if driver.run():
                break
            checkpoint = driver.committed - driver.committed % every
        assert ledger.audit(groups_per_step=3, max_staleness=0) == []
        rows = ledger._connection.execute("SELECT * FROM draws ORDER BY epoch, ordinal")
        return rows.fetchall()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_killed_anywhere_it_asks_the_same(schedule: str) -> None:
    whole = played(schedule, [])
    assert len(whole) > STEPS * 3, "some groups are dropped"
    kills = random.Random(schedule)
    for _ in range(15):
        dies_after = [kills.randint(0, 12) for _ in range(kills.randint(1, 4))]
        every = kills.choice([1, 2, 3])
        assert played(schedule, dies_after, every) == whole, (dies_after, every)


def test_the_draws_do_depend_on_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = played("adaptive", [])
    monkeypatch.setattr(Driver, "_score", lambda self, call, index: float(index % 2))
    assert played("adaptive", []) != whole
