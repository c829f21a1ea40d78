"""A run that ends before its last step: cleanly after a step, or by a tripwire."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from cluster import driver, run
from cluster.learner_group import LearnerReply
from cluster.probe_log import ProbeLog, Ruling
from cluster.protocol import (
    EngineServing,
    Finish,
    GrantLease,
    LoadWeights,
    PayloadLost,
    Publish,
    Train,
    WeightsPublished,
)
from cluster.resume_point import ResumePoint, newest_checkpoint
from cluster.run_directory import RunDirectory
from cluster.transitions import DropReason, GroupState
from safeladder.errors import NotResumableError, TrippedError
from safeladder.records import StepReport, TrainOrder

from .coordinator_play import Play, make_config
from .scripted_fleet import ScriptedFleet, loaded, published
from .test_driver import make_run, save
from .test_loop import Engines, Listener, make_loop, make_probes, store

RULING = Ruling(
    kind="exit",
    step=1,
    text="probe safe is at its target",
    reason="target",
    probe="safe",
    value=1.0,
)
PAUSE = Ruling(kind="pause", step=1, text="it fell", reason="wire", probe="safe", value=0.1)
BACK = Ruling(kind="rollback", step=3, to=1, text="it fell", reason="wire", probe="safe", value=0.1)


# ---- the coordinator --------------------------------------------------------------------------


def test_the_running_step_is_the_last_and_everything_else_is_dropped() -> None:
    play = Play(make_config(run={"name": "play", "steps": 9}))
    play.fill_step()
    assert play.coordinator.end_early() == 1
    play.commit()
    assert play.take(Train) == []
    assert [p.version for p in play.take(Publish)] == [1]
    play.send(WeightsPublished(1))
    assert play.take(LoadWeights) == [LoadWeights("rollout-0", 1)]
    play.send(EngineServing("rollout-0", 1))
    assert len(play.take(Finish)) == 1
    status = play.coordinator.status()
    assert set(status.dropped_by_reason) == {DropReason.UNNEEDED}
    assert {state for state, n in status.counts.items() if n} == {
        GroupState.TRAINED,
        GroupState.DROPPED,
    }


def test_between_two_steps_the_last_committed_one_is_the_last() -> None:
    play = Play(make_config(run={"name": "play", "steps": 9}))
    leases = play.take(GrantLease)
    assert play.coordinator.end_early() == 0
    play.tick(1)
    assert len(play.take(Finish)) == 1
    assert play.take(GrantLease) == []
    assert leases, "some were on their way"


def test_a_group_of_the_last_step_whose_payload_is_lost_is_generated_again() -> None:
    play = Play(make_config(run={"name": "play", "steps": 9}))
    play.fill_step()
    (train,) = play.take(Train)
    play.take(GrantLease)
    play.coordinator.end_early()
    group = train.order.groups[0]
    play.send(PayloadLost(group.key, group.attempt))
    play.tick(1)
    (again,) = play.take(GrantLease)
    assert again.lease.key == group.key


# ---- the loop ---------------------------------------------------------------------------------


class Early(Listener):
    """A coordinator that can be ended."""

    last_step = 3
    ended = 0

    def end_early(self) -> int:
        self.ended += 1
        return self.last_step


def end_with(
    ruling: Ruling | None, standing: Ruling | None = None, **more: Any
) -> tuple[Early, list[int], Ruling | None]:
    """The coordinator, the checkpoints that were asked for, and what the loop returns."""
    listener, saves = Early(), list[int]()
    rulings = iter([ruling])
    probes = make_probes(step=lambda: next(rulings, None), standing=lambda: standing)
    loop = make_loop(
        listener, Engines(loaded(0)), store(0), probes=probes, save=saves.append, **more
    )
    return listener, saves, loop.run()


def test_an_exit_lets_the_step_end_and_saves_it() -> None:
    assert end_with(RULING)[1:] == ([3], RULING)


def test_a_step_whose_checkpoint_was_due_is_not_saved_again() -> None:
    report = StepReport(step=3, version=3, metrics={}, seconds=0.1)
    order = Train(TrainOrder(step=3, fence=1, groups=()))
    reply = LearnerReply(context=order, value=report)
    listener, saves, _ = end_with(RULING, learned=[reply])
    assert saves == [3]
    assert listener.ended == 1


def test_a_run_that_goes_on_from_its_end_saves_nothing() -> None:
    assert end_with(None, standing=RULING, saved=3)[1:] == ([], RULING)


def test_a_run_that_was_not_ended_early_saves_what_is_due_alone() -> None:
    listener, saves, ruling = end_with(None)
    assert (listener.ended, saves, ruling) == (0, [], None)


@pytest.mark.parametrize("kind", ["fail", "rollback"])
def test_what_does_not_let_the_step_end_ends_the_loop_at_once(kind: str) -> None:
    ruling = Ruling(kind=kind, step=1, text="fell", reason="w", probe="safe", value=0.0)  # type: ignore[arg-type]
    with pytest.raises(TrippedError, match="fell") as caught:
        end_with(ruling)
    assert (caught.value.action, caught.value.exit_code) == (kind, 5)


def test_newer_weights_wait_for_the_round_and_the_newest_are_loaded_then() -> None:
    engines, held = ScriptedFleet("rollout-0"), [True]
    probes = make_probes(holds=lambda engine: held[0])
    weights = store(2)
    loop = make_loop(Listener(), engines, weights, probes=probes)
    loop._execute(LoadWeights("rollout-0", 2))
    loop._follow_probes()
    assert engines.take() == []
    weights.commit(published(3))
    held[0] = False
    loop._follow_probes()
    (call,) = engines.take()
    assert (call.method, call.arguments["manifest"].version) == ("load_weights", 3)


def test_a_round_that_is_open_at_the_last_step_is_waited_for() -> None:
    probes = make_probes()
    turns = iter([True, False])
    type(probes).is_open = property(lambda self: next(turns))  # type: ignore[assignment]
    make_loop(Listener(), Engines(loaded(0)), store(0), probes=probes).run()
    assert next(turns, None) is None


# ---- the driver -------------------------------------------------------------------------------


class Executions:
    """Plays ``Run``: the first one falls, the next ones finish."""

    def __init__(self, log: ProbeLog, action: str) -> None:
        self.points: list[ResumePoint] = []
        self._log = log
        self._action = action

    def __call__(self, config: object, directory: RunDirectory, point: ResumePoint) -> Mock:
        self.points.append(point)
        return Mock(execute=self._execute)

    def _execute(self) -> int:
        if len(self.points) > 1:
            return 0
        if self._action == "rollback":
            self._log.rule(1, BACK)
        raise TrippedError("it fell", self._action)


def tripped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> tuple[RunDirectory, Executions]:
    _, directory = make_run(tmp_path)
    for step in (1, 2, 3):
        save(directory.checkpoints, step)
    executions = Executions(ProbeLog(directory.probes), action)
    monkeypatch.setattr(run, "Run", executions)
    monkeypatch.setattr(driver, "preflight", lambda config: None)
    return directory, executions


def test_a_rollback_goes_on_from_the_last_checkpoint_before_the_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, executions = tripped_run(tmp_path, monkeypatch, "rollback")
    assert driver.resume(directory.path) == 0
    assert [point.step for point in executions.points] == [3, 1]
    status = directory.status()
    assert status is not None
    assert status.reason == "TrippedError: it fell"


@pytest.mark.parametrize("action", ["pause", "fail"])
def test_other_tripwires_end_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    directory, executions = tripped_run(tmp_path, monkeypatch, action)
    with pytest.raises(TrippedError):
        driver.resume(directory.path)
    assert len(executions.points) == 1


def test_a_driver_that_dies_between_the_ruling_and_the_rollback_goes_back_all_the_same(
    tmp_path: Path,
) -> None:
    _, directory = make_run(tmp_path)
    for step in (1, 2, 3):
        save(directory.checkpoints, step)
    ProbeLog(directory.probes).rule(1, BACK)
    path, sentences = newest_checkpoint(directory)
    assert path == directory.checkpoints / "step-1"
    assert "it is later than step 1, and it fell" in sentences[0]


def test_a_fall_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    _, directory = make_run(tmp_path)
    save(directory.checkpoints, 3)
    ProbeLog(directory.probes).rule(1, BACK)
    assert newest_checkpoint(directory)[0] is None


def test_a_damaged_checkpoint_beside_forbidden_ones_does_not_begin_anew(tmp_path: Path) -> None:
    _, directory = make_run(tmp_path)
    save(directory.checkpoints, 3)
    (save(directory.checkpoints, 1) / "model.safetensors").write_bytes(b"Weights")
    ProbeLog(directory.probes).rule(1, BACK)
    with pytest.raises(NotResumableError, match="differs"):
        newest_checkpoint(directory)


def test_a_run_that_a_tripwire_has_failed_is_not_resumed(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path)
    save(directory.checkpoints, 3)
    fail = Ruling(kind="fail", step=3, text="it fell", reason="wire", probe="safe", value=0.1)
    ProbeLog(directory.probes).rule(1, fail)
    with pytest.raises(NotResumableError, match="was ended for good: it fell"):
        ResumePoint.find(config, directory)
