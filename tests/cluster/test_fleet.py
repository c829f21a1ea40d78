"""A fleet notices every death and sends no call alone: Ray's actor manager is real, Ray itself is
played."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.rllib.utils import actor_manager

from cluster import fleet as fleet_module
from cluster import remote
from cluster.fleet import (
    HEARTBEAT_DEADLINE_S,
    HEARTBEAT_EVERY_S,
    Fleet,
    FleetEvent,
    Joined,
    Lost,
    Reply,
)
from cluster.role_host import Answer, Handle, Letter, RoleFailure

START_S = 100.0


class Reference:
    """The result of one call of Ray's, there or not."""

    def __init__(self, actor: Actor, value: object = None) -> None:
        self.actor = actor
        self.value = value
        self.is_done = False


class Method:
    """``RoleHost.call``: ``start`` and ``status`` answer at once, if the actor does."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def remote(self, *, method: str, **_: Any) -> Reference:
        reference = Reference(self._actor, f"{method} is done")
        reference.is_done = not self._actor.is_silent
        self._actor.calls.append(reference)
        return reference


class Exchanges:
    """``RoleHost.exchange``: answers what it is told to."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def remote(self, letters: list[Letter]) -> tuple[Reference, Reference]:
        exchange = Reference(self._actor), Reference(self._actor)
        self._actor.letters.append([(letter.method, letter.tag) for letter in letters])
        self._actor.exchanges.append(exchange)
        return exchange


class Actor:
    """An actor handle whose process may die."""

    def __init__(self) -> None:
        self.letters: list[list[tuple[str, int]]] = []
        """Of each exchange."""
        self.exchanges: list[tuple[Reference, Reference]] = []
        self.calls: list[Reference] = []
        """``start`` and ``status``, in order."""
        self.is_dead = False
        self.is_silent = False
        self._actor_id = id(self)
        self.call = Method(self)
        self.exchange = Exchanges(self)

    def answer(self, exchange: int, **values: object) -> None:
        """End an exchange; a ``put_`` value goes into its bundle."""
        found = []
        for name, value in values.items():
            tag = int(name.rpartition("_")[2])
            handles = [Handle(None, 0)] if name.startswith("put") else []
            found.append(Answer(tag, handles[0] if handles else value, handles))
        self.exchanges[exchange][0].value = found
        self.exchanges[exchange][0].is_done = True


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
        """Queue one call."""
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
        return reference.value

    for module in (actor_manager, remote):
        monkeypatch.setattr(module.ray, "wait", wait)
        monkeypatch.setattr(module.ray, "get", get)
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
    play.at(0.0)
    play.at(6.0)
    play.actors[0].answer(0, late_0="group")
    assert play.at(7.0) == []
    assert play.fleet.ready == ["rollout-0"]


def test_calls_of_one_turn_go_out_together_and_are_answered_as_they_end(play: Play) -> None:
    for context in ("a", "b", "c"):
        play.ask(context)
    play.fleet.send()
    (actor,) = play.actors
    assert actor.letters == [[("generate", 0), ("generate", 1), ("generate", 2)]]
    actor.answer(0, _2="third", _0="first")
    replies = [(e.context, e.value) for e in play.at(0.1) if isinstance(e, Reply)]
    assert replies == [("c", "third"), ("a", "first")]
    assert actor.letters[1:] == [[]], "somebody must wait for what is open"
    play.fleet.send()
    assert len(actor.letters) == 2, "one waits already"
    actor.answer(1, _1="second")
    assert [e.value for e in play.at(0.2) if isinstance(e, Reply)] == ["second"]
    assert len(actor.letters) == 2, "nothing is open"


def test_what_a_call_has_put_is_found_in_the_bundle_of_its_exchange(play: Play) -> None:
    play.ask("lease")
    play.fleet.send()
    (actor,) = play.actors
    actor.answer(0, put_0="group")
    (reply,) = play.at(0.1)
    assert isinstance(reply, Reply)
    assert reply.value.reference is actor.exchanges[0][1]
    assert reply.value.payload(["the group", "another"]) == "the group"


def test_a_call_that_expires_with_its_silent_actor_is_told_once(play: Play) -> None:
    play.actors[0].is_silent = True
    play.at(HEARTBEAT_EVERY_S + 1)  # a heartbeat goes out before the lease
    play.fleet.call("rollout-0", "generate", {}, context="lease", deadline_s=2 * START_S)
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


def test_what_an_actor_says_of_itself_is_kept_but_not_that_it_could_not(play: Play) -> None:
    play.at(HEARTBEAT_EVERY_S + 1)
    play.at(HEARTBEAT_EVERY_S + 1.1)
    assert play.fleet.take_beats() == {"rollout-0": "status is done"}
    assert play.fleet.take_beats() == {}
    play.at(2 * HEARTBEAT_EVERY_S + 2)
    failure = RoleFailure(kind="ValueError", message="no", exit_code=1, detail="")
    play.actors[0].calls[-1].value = failure
    play.at(2 * HEARTBEAT_EVERY_S + 2.1)
    assert play.fleet.take_beats() == {}
    assert play.fleet.said("rollout-0") == "status is done"


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
