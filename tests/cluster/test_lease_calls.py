"""Leases as calls, and what the loop makes of their answers: the fleet is scripted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.lease_answers import GeneratedGroup
from cluster import lease_calls
from cluster.fleet import Reply
from cluster.protocol import (
    Event,
    GenerationFailed,
    GrantLease,
    GroupGenerated,
    GroupInterrupted,
    InterruptLease,
)
from cluster.role_host import RoleFailure
from safeladder.partials import InterruptedGroup, PartialHeader
from safeladder.records import GenerationFailure
from tests.cluster.coordinator_play import Play, header
from tests.cluster.scripted_fleet import ScriptedFleet, loaded
from tests.cluster.test_loop import Listener, make_loop, store

GRANT = Play().take(GrantLease)[0]
PART = PartialHeader(
    key=GRANT.lease.key, attempt=1, fence=1, engine="rollout-0", cause="asked", num_tokens=3,
    min_version=0, generate_s=1.0,
)  # fmt: skip


def heard(*values: Any, context: Any = GRANT) -> tuple[list[Event], ScriptedFleet]:
    """What the coordinator hears when an engine says this to a lease."""
    listener, fleet = Listener(), ScriptedFleet("rollout-0")
    fleet.events += [Reply(actor="rollout-0", context=context, value=value) for value in values]
    make_loop(listener, fleet, store(0)).run()
    kinds = GroupGenerated | GroupInterrupted | GenerationFailed
    return [event for event in listener.heard if isinstance(event, kinds)], fleet


def test_an_answer_comes_as_the_event_that_it_is() -> None:
    made = header(GRANT.lease, "rollout-0", 0)
    events, _ = heard(
        GeneratedGroup(header=made, payload="group"), InterruptedGroup(header=PART, payload="part")
    )
    assert events == [GroupGenerated(made, "group"), GroupInterrupted(PART, "part")]


def test_a_passed_deadline_is_told_at_once_and_an_engine_error_only_after_a_look() -> None:
    late = GenerationFailure.of(GRANT.lease, "rollout-0", "deadline", "", retryable=True)
    odd = replace(late, cause="engine_error")
    events, fleet = heard(late, odd)
    assert events == [GenerationFailed(late)]
    assert [call.method for call in fleet.calls if call.method != "load_weights"] == ["status"]


def test_an_exception_of_the_role_is_an_engine_error_of_the_lease() -> None:
    raised = RoleFailure(kind="KeyError", message="gone", exit_code=1, detail="")
    reply = Reply(actor="rollout-0", context=GRANT, value=raised)
    event = lease_calls.answer(reply)
    assert isinstance(event, GenerationFailed)
    assert (event.failure.cause, event.failure.detail) == ("engine_error", "KeyError: gone")


@pytest.mark.parametrize("said", [True, False, loaded(0)])
def test_what_an_engine_says_to_an_interruption_itself_tells_nothing(said: Any) -> None:
    events, _ = heard(said, context=InterruptLease("rollout-0", GRANT.lease.key, 1))
    assert events == []


def test_leases_and_interruptions_are_calls_that_outlast_the_engines_own_deadline() -> None:
    class Timed(ScriptedFleet):
        def call(self, *call: Any, deadline_s: float, **more: Any) -> bool:
            self.deadlines.append(deadline_s)
            return super().call(*call, **more)

    fleet = Timed("rollout-0")
    fleet.deadlines: list[float] = []  # type: ignore[misc]
    for command in (GRANT, InterruptLease("rollout-0", GRANT.lease.key, 1)):
        lease_calls.send(fleet, command, fence=7)  # type: ignore[arg-type]
    generate, interrupt = fleet.calls
    assert (generate.method, generate.arguments) == ("generate", {"lease": GRANT.lease})
    assert interrupt.method == "interrupt"
    assert interrupt.arguments == {"key": GRANT.lease.key, "attempt": 1, "fence": 7}
    assert fleet.deadlines == [GRANT.lease.deadline_s + 30, 30]
