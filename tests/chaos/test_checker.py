"""The checker of ``make chaos`` is silent about a sound run, and sees what must not be."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.chaos.checker import Findings, check_finished
from tests.chaos.witnessed import append

BOUND = 1


class Ended:
    """Two steps of two groups of two samples, one group dropped; all by the driver of fence 1."""

    def __init__(self, folder: Path) -> None:
        self.run, self.witness = folder / "run", folder / "witness"
        for path in (self.run / "batches", self.run / "checkpoints" / "step-2"):
            path.mkdir(parents=True)
        (self.witness / "batches").mkdir(parents=True)
        (self.run / "summary.json").write_text('{"steps": 2}')
        self.checkpoint(num_updates=2)
        self.connection = sqlite3.connect(self.run / "ledger.sqlite", isolation_level=None)
        self.connection.execute("CREATE TABLE groups (epoch, ordinal, state, reason)")
        self.connection.execute("CREATE TABLE history (id INTEGER PRIMARY KEY, fence)")
        for ordinal in range(5):
            state = ("dropped", "filtered") if ordinal == 2 else ("trained", None)
            self.connection.execute("INSERT INTO groups VALUES (0, ?, ?, ?)", (ordinal, *state))
            self.connection.execute("INSERT INTO history (fence) VALUES (1)")
            for index in range(2):
                self.judged(f"0/{ordinal}/{index}", 0.5)
        self.judged("canary/1", 1.0)
        self.batch(1, [0, 1])
        self.batch(2, [3, 4])
        self.point("fence.committed", 1, pid=10)
        self.point("trained.committed", "", pid=10)
        for step in (1, 2):
            self.point("optimizer.stepped", step, pid=11)

    def checkpoint(self, *, num_updates: int) -> None:
        manifest = {"step": 2, "fence": 1, "num_updates": num_updates}
        path = self.run / "checkpoints" / "step-2" / "manifest.json"
        path.write_text(json.dumps(manifest))

    def judged(self, sample: str, score: float | None) -> None:
        append(self.witness / "far.judged", json.dumps({"sample_id": sample, "score": score}))

    def point(self, point: str, detail: object, *, pid: int) -> None:
        row = {"point": point, "detail": str(detail), "pid": pid}
        append(self.witness / "points", json.dumps(row))

    def batch(
        self,
        step: int,
        ordinals: list[int],
        *,
        fence: int = 1,
        reward: float = 0.5,
        status: str = "ok",
        version: int | None = None,
    ) -> None:
        ids = [f"0/{ordinal}/{index}" for ordinal in ordinals for index in range(2)]
        path = self.run / "batches" / f"step-{step}.safetensors"
        path.unlink(missing_ok=True)
        save_file(
            {
                "rewards": np.full(len(ids), reward),
                "token_versions": np.array([step - 1, step - 1 if version is None else version]),
            },
            path,
            {
                "fence": str(fence),
                "sample_ids": json.dumps(ids),
                "audit": json.dumps([json.dumps([{"status": status}])]),
            },
        )
        number = len(list((self.witness / "batches").iterdir()))
        os.link(path, self.witness / "batches" / f"{number:06d}-{path.name}")

    def check(self) -> Findings:
        return check_finished(self.run, self.witness, groups_per_step=2, bound=BOUND)


@pytest.fixture
def ended(tmp_path: Path) -> Ended:
    return Ended(tmp_path)


def test_a_sound_run_has_no_violation(ended: Ended) -> None:
    assert ended.check() == Findings()


def test_a_step_that_a_later_driver_did_again_is_sound(ended: Ended) -> None:
    ended.point("fence.committed", 2, pid=20)
    ended.batch(2, [3, 4], fence=2)
    ended.point("optimizer.stepped", 2, pid=21)
    assert ended.check() == Findings()


def test_a_group_that_is_still_to_be_leased_is_not_lost(ended: Ended) -> None:
    ended.connection.execute("INSERT INTO groups VALUES (0, 5, 'pending', NULL)")
    ended.judged("0/5/0", 0.5)
    assert ended.check() == Findings()


def never_issued(ended: Ended) -> None:
    ended.judged("0/6/0", 1.0)
    ended.connection.execute("INSERT INTO groups VALUES (0, 6, 'pending', NULL)")


def in_two_batches(ended: Ended) -> None:
    ended.batch(2, [1, 4])


def without_a_reason(ended: Ended) -> None:
    ended.connection.execute("UPDATE groups SET reason = NULL")


def pending_below_the_frontier(ended: Ended) -> None:
    ended.connection.execute("UPDATE groups SET state = 'pending' WHERE ordinal = 2")


def a_row_of_the_old_driver(ended: Ended) -> None:
    for fence in (2, 1):
        ended.connection.execute("INSERT INTO history (fence) VALUES (?)", (fence,))


def a_commit_of_the_old_driver(ended: Ended) -> None:
    ended.point("fence.committed", 2, pid=20)
    ended.point("generated.committed", "", pid=10)


def a_batch_of_the_old_driver(ended: Ended) -> None:
    ended.batch(2, [3, 4], fence=2)
    ended.batch(2, [3, 4], fence=1)


def another_reward(ended: Ended) -> None:
    ended.batch(2, [3, 4], reward=0.75)


def an_invalid_sample(ended: Ended) -> None:
    ended.batch(2, [3, 4], status="invalid")


def a_number_for_what_the_verifier_called_invalid(ended: Ended) -> None:
    ended.judged("0/3/0", None)
    ended.batch(2, [3, 4], reward=0.0)


def old_tokens(ended: Ended) -> None:
    ended.batch(2, [3, 4], version=-1)


def a_short_batch(ended: Ended) -> None:
    ended.batch(2, [3])


def without_a_batch(ended: Ended) -> None:
    (ended.run / "batches" / "step-1.safetensors").unlink()


def weights_with_another_update(ended: Ended) -> None:
    ended.checkpoint(num_updates=3)


def a_step_taken_twice(ended: Ended) -> None:
    ended.point("optimizer.stepped", 2, pid=11)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (never_issued, "0/5 was asked for, and has no end"),
        (in_two_batches, "0/1 is in 2 batches"),
        (without_a_reason, "0/2 was asked for, and has no end"),
        (pending_below_the_frontier, "0/2 was asked for, and has no end"),
        (a_row_of_the_old_driver, "a replaced driver wrote: ledger row 7"),
        (a_commit_of_the_old_driver, "generated.committed of process 10"),
        (a_batch_of_the_old_driver, "a replaced driver wrote: batch 000003-step-2"),
        (another_reward, "0/3/0 is trained with 0.75"),
        (an_invalid_sample, "step 2 trained an INVALID sample"),
        (a_number_for_what_the_verifier_called_invalid, "0/3/0 is trained with 0.0"),
        (old_tokens, "step 2 trained tokens of staleness 2"),
        (a_short_batch, "0/4 is trained, says the ledger; it is in no batch"),
        (without_a_batch, "step 1 has no batch; 0/0 was asked for, and has no end"),
        (weights_with_another_update, "the last checkpoint has 3 updates for 2 steps"),
        (a_step_taken_twice, "learner 11 took the steps [1, 2, 2]"),
    ],
)
def test_what_must_not_be_is_seen(
    ended: Ended, damage: Callable[[Ended], None], sentence: str
) -> None:
    damage(ended)
    assert sentence in "; ".join(ended.check().violations)
