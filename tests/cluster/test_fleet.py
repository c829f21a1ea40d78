"""A fleet notices every death: Ray's actor manager is real, Ray itself is played."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.rllib.utils import actor_manager

from cluster import fleet as fleet_module
from cluster.fleet import (
    HEARTBEAT_DEADLINE_S,
    HEARTBEAT_EVERY_S,
    Fleet,
    FleetEvent,
    Joined,
    Lost,
    Reply,
)
from cluster.remote import RoleFailure

START_S = 100.0


class Reference:
    """The result of one call, there or not."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.is_done = False


class Method:
    """A remote method: ``start`` and ``status`` answer at once, ``generate`` when it is told to."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def remote(self, *, method: str, **_: Any) -> Reference:
        reference = Reference(self._actor)
        reference.is_done = method in ("start", "status") and not self._actor.is_silent
        self._actor.calls.append(reference)
        return reference


class Actor:
    """An actor handle whose process may die."""

    def __init__(self) -> None:
        self.calls: list[Reference] = []
        self.is_dead = False
        self.is_silent = False
        self._actor_id = id(self)
        self.call = Method(self)


class Play:
    """A fleet of one, and its clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.actors: list[Actor] = []
        self.fleet = Fleet(
            "rollout", self._spawn, size=1, start_deadline_s=START_S, clock=lambda: self.now_s
        )
        (joined,) = self.fleet.poll()
        assert isinstance(joined, Joined)

    def _spawn(self, _: str) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    def ask(self, context: str) -> bool:
        return self.fleet.call("rollout-0", "generate", {}, context=context, deadline_s=5.0)

    def at(self, now_s: float) -> list[FleetEvent]:
        self.now_s = now_s
        return self.fleet.poll()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    def wait(references: list[Reference], **_: Any) -> tuple[list[Reference], list[Reference]]:
        ready = [r for r in references if r.is_done or r.actor.is_dead]
        return ready, [r for r in references if r not in ready]

    def get(reference: Reference) -> object:
        if not reference.is_done:
            raise RayActorError
        return "answer"

    monkeypatch.setattr(actor_manager.ray, "wait", wait)
    monkeypatch.setattr(actor_manager.ray, "get", get)
    monkeypatch.setattr(fleet_module, "kill", lambda _: None)
    return Play()


def test_a_death_told_by_an_expired_call_is_a_loss(play: Play) -> None:
    assert play.ask("lease")
    (late,) = play.at(6.0)
    assert isinstance(late, Reply)
    assert late.context == "lease"
    play.actors[0].is_dead = True
    lost, joined = play.at(6.5), play.at(7.0)
    assert [(type(e), getattr(e, "contexts", None)) for e in lost] == [(Lost, ())]
    assert [type(e) for e in joined] == [Joined]
    assert play.fleet.ready == ["rollout-1"]


def test_the_answer_to_an_expired_call_is_dropped_and_proves_life(play: Play) -> None:
    play.ask("lease")
    play.at(6.0)
    play.actors[0].calls[1].is_done = True
    assert play.at(7.0) == []
    assert play.fleet.ready == ["rollout-0"]


def test_a_living_actor_that_takes_no_call_is_lost_and_replaced(play: Play) -> None:
    play.ask("first")
    (manager_id,) = play.fleet._manager.actor_ids()
    play.fleet._manager.set_actor_state(manager_id, healthy=False)
    assert not play.ask("second")
    events = play.at(0.1)
    assert Lost(actor="rollout-0", reason="it takes no more calls", contexts=("first",)) in events
    assert [type(e) for e in events] == [Lost, Joined]
    assert not play.ask("third"), "the lost one is gone"
    assert play.at(0.2) == []


def test_a_call_that_expires_with_its_silent_actor_is_told_once(play: Play) -> None:
    play.actors[0].is_silent = True
    play.at(HEARTBEAT_EVERY_S + 1)  # a heartbeat goes out before the lease
    play.ask("lease")
    (lost,) = play.at(HEARTBEAT_DEADLINE_S * 2)
    assert isinstance(lost, Lost)
    assert lost.contexts == ("lease",)


def test_an_actor_beyond_those_needed_waits_for_room_as_long_as_it_takes(play: Play) -> None:
    del play
    actors: list[Actor] = []
    now_s = 0.0

    def spawn(_: str) -> Actor:
        actors.append(Actor())
        actors[-1].is_silent = len(actors) == 2  # no room for it yet
        return actors[-1]

    fleet = Fleet(
        "rollout", spawn, size=2, num_needed=1, start_deadline_s=START_S, clock=lambda: now_s
    )
    assert [type(e) for e in fleet.poll()] == [Joined]
    now_s = 100 * START_S
    fleet.poll()
    assert fleet.ready == ["rollout-0"]
    assert len(actors) == 2, "it was not given up"
    actors[1].is_silent = False
    actors[1].calls[0].is_done = True
    fleet.poll()  # placed: it is asked to start
    assert [type(e) for e in fleet.poll()] == [Joined]
    assert fleet.ready == ["rollout-0", "rollout-1"]


def test_what_an_actor_says_of_itself_is_kept_but_not_that_it_could_not(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play.at(HEARTBEAT_EVERY_S + 1)
    play.at(HEARTBEAT_EVERY_S + 1.1)
    assert play.fleet.take_beats() == {"rollout-0": "answer"}
    assert play.fleet.take_beats() == {}
    failure = RoleFailure(kind="ValueError", message="no", exit_code=1, detail="")
    monkeypatch.setattr(actor_manager.ray, "get", lambda _: failure)
    play.at(2 * HEARTBEAT_EVERY_S + 2)
    play.at(2 * HEARTBEAT_EVERY_S + 2.1)
    assert play.fleet.take_beats() == {}
    assert play.fleet.said("rollout-0") == "answer"


def test_a_fleet_grows_at_once_and_shrinks_when_its_actors_are_dismissed(play: Play) -> None:
    fleet = play.fleet
    assert fleet.resize(3) == []
    play.at(0.1)
    play.at(0.2)
    assert fleet.ready == ["rollout-0", "rollout-1", "rollout-2"]
    assert fleet.resize(1) == ["rollout-2", "rollout-1"]
    assert fleet.ready == ["rollout-0", "rollout-1", "rollout-2"], "they work on until dismissed"
    assert fleet.dismiss("rollout-2") == ()
    assert play.at(0.3) == [], "nobody was lost"
    assert fleet.members == ["rollout-0", "rollout-1"]


def test_who_dies_while_leaving_is_not_replaced_and_who_stays_is(play: Play) -> None:
    play.fleet.resize(2)
    play.at(0.1)
    play.at(0.2)
    (leaver,) = play.fleet.resize(1)
    play.fleet.retire(leaver, "hung")
    assert [type(e) for e in play.at(0.3)] == [Lost]
    assert play.fleet.members == ["rollout-0"]
    play.fleet.retire("rollout-0", "hung")
    play.at(0.4)
    assert len(play.fleet.members) == 1


def test_a_fleet_that_grows_again_does_not_count_on_those_that_leave(play: Play) -> None:
    play.fleet.resize(2)
    play.at(0.1)
    play.at(0.2)
    (leaver,) = play.fleet.resize(1)
    play.fleet.resize(2)
    play.at(0.3)
    assert len(play.fleet.members) == 3
    play.fleet.dismiss(leaver)
    assert len(play.fleet.members) == 2
