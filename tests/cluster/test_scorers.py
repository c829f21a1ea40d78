"""How many calls an actor holds follows from how many it answers."""

from __future__ import annotations

import itertools
from unittest.mock import Mock

import pytest

from actors.reference import ReferenceFailure, ReferenceScored
from cluster import scorers as scorers_module
from cluster.fleet import Reply
from cluster.protocol import (
    REFERENCE,
    ActorJoined,
    Event,
    GrantLease,
    ReferenceReady,
    Score,
    ScoreReference,
)
from cluster.scorers import CALLS_PER_REFERENCE, MOST_CALLS, Pace, Scorers
from safeladder.records import GroupKey

from .coordinator_play import Play, make_config
from .scripted_fleet import ScriptedFleet


@pytest.mark.parametrize(
    ("seconds_each", "capacity"),
    [(10.0, 2), (0.01, 20), (1e-3, MOST_CALLS)],
    ids=["slow", "quick", "very quick"],
)
def test_an_actor_holds_what_it_answers_in_a_fifth_of_a_second(
    seconds_each: float, capacity: int
) -> None:
    pace = Pace(least=2)
    for number in range(1000):
        pace.note(1e6 + number * seconds_each)
    assert abs(pace.capacity - capacity) <= 1


def test_an_actor_that_becomes_slow_holds_few_calls_again() -> None:
    pace = Pace(least=2)
    times = itertools.accumulate([1e6, *[0.01] * 200, *[10.0] * 2])
    assert sum(pace.note(now) for now in times) >= 2, "up and down"
    assert pace.capacity == 2


def test_a_quick_reference_is_given_more_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1e6
    monkeypatch.setattr(scorers_module.time, "monotonic", lambda: now)
    fleet = ScriptedFleet("reference-0")
    scorers = Scorers({}, fleet, Mock(), Mock(), Mock())  # type: ignore[arg-type]
    said: list[Event] = list(scorers.announce())
    for number in range(100):
        now += 0.005
        call = ScoreReference(GroupKey(0, number), 1, 1, "payload")
        value = ReferenceScored(key=call.key, attempt=1, payload="logprobs", seconds=0.1)
        fleet.events.append(Reply(actor="reference-0", context=call, value=value))
        events = scorers.poll()
        assert isinstance(events[0], ReferenceReady)
        said += events[1:]
    capacities = [event.capacity for event in said if isinstance(event, ActorJoined)]
    assert capacities[0] == CALLS_PER_REFERENCE
    assert capacities[-1] == 40


def test_a_call_that_found_no_payload_holds_its_slot_no_longer() -> None:
    """Each slot of a reference would else be held for eleven minutes."""
    play = Play(make_config(reference={"kl_coefficient": 0.1}))
    play.send(ActorJoined(REFERENCE, "reference-0", 1))
    fleet = ScriptedFleet("reference-0")
    scorers = Scorers({}, fleet, Mock(), Mock(), Mock())  # type: ignore[arg-type]
    for grant in play.take(GrantLease)[:2]:
        play.generate(grant)
    for score in play.take(Score):
        play.judge(score, [0.0, 1.0])
    (call,) = play.take(ScoreReference)
    gone = ReferenceFailure(key=call.key, attempt=1, cause="payload_lost", detail="gone")
    fleet.events.append(Reply(actor="reference-0", context=call, value=gone))
    play.send(*scorers.poll())
    play.tick()
    (after,) = play.take(ScoreReference)
    assert after.key != call.key
