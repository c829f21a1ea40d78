"""Every second of a run is counted once, for what the coordinator said then."""

from __future__ import annotations

import pytest

from cluster.group_life import GroupLives
from cluster.protocol import GrantLease, Train
from cluster.time_account import TimeAccount
from cluster.transitions import GroupState
from tests.cluster.coordinator_play import Play, make_config


def play_of_two() -> Play:
    return Play(make_config(schedule={"groups_per_step": 2, "max_staleness": 1}))


def test_learner_and_engines_are_counted_for_what_they_do() -> None:
    play = play_of_two()
    account = TimeAccount(0.0)
    account.look(2.0, play.coordinator.glance())  # no engine has said what it serves
    play.fill_step()
    account.look(5.0, play.coordinator.glance())  # a step is ordered, the next groups are written
    play.commit()
    row = account.close_step(train_s=2.5)
    assert row["learner/wait_s"] == 2.0
    assert row["learner/other_s"] == pytest.approx(0.5)
    assert sum(row[f"engines/{state}"] for state in ("busy", "loading", "idle", "starting")) == (
        pytest.approx(1.0)
    )


def test_a_closed_step_leaves_nothing_for_the_next() -> None:
    play = play_of_two()
    account = TimeAccount(0.0)
    account.look(7.0, play.coordinator.glance())
    account.close_step(0.0)
    account.look(8.0, play.coordinator.glance())
    assert account.close_step(0.0)["learner/wait_s"] == 1.0


def test_a_group_tells_how_long_it_was_written_scored_and_kept_waiting() -> None:
    play = play_of_two()
    leases = play.take(GrantLease)
    play.tick(4.0)
    play.generate(leases[0])
    play.tick(6.0)
    play.generate(leases[1])
    play.tick(1.0)
    play.score_all()
    assert play.take(Train)
    lives = play.coordinator.lives.drain()
    assert lives["group/tail_s"] == pytest.approx(3.0)  # 4 s and 10 s, less their median, 7 s
    assert lives["group/generate_p99_s"] == pytest.approx(10.0)
    assert lives["group/score_p99_s"] == pytest.approx(7.0)
    assert lives["group/score_mean_s"] == pytest.approx(4.0)
    assert play.coordinator.lives.drain() == {}


def test_a_part_of_a_life_that_nobody_saw_is_no_zero() -> None:
    lives = GroupLives()
    lives.add({GroupState.SCORED: 3.0, GroupState.ADMITTED: 5.0})
    assert lives.drain() == {"group/queue_mean_s": 2.0, "group/queue_p99_s": 2.0}
