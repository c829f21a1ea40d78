"""Several fleets of engines, used as one."""

from __future__ import annotations

from typing import Any

from cluster.fleet import Exhausted, Joined
from cluster.rollout_fleets import RolloutFleets, announced

from .coordinator_play import make_config
from .scripted_fleet import ScriptedFleet, loaded


def fleets() -> tuple[RolloutFleets, ScriptedFleet, ScriptedFleet]:
    fast, slow = ScriptedFleet("rollout-fast-0", "rollout-fast-1"), ScriptedFleet("rollout-slow-0")
    both: Any = {"rollout-fast": fast, "rollout-slow": slow}
    return RolloutFleets(both), fast, slow


def test_a_call_goes_to_the_fleet_of_its_engine() -> None:
    engines, fast, slow = fleets()
    assert engines.ready == ["rollout-fast-0", "rollout-fast-1", "rollout-slow-0"]
    assert engines.call("rollout-slow-0", "generate", {}, context=1, deadline_s=1)
    assert ([c.actor for c in fast.take()], [c.actor for c in slow.take()]) == (
        [],
        ["rollout-slow-0"],
    )
    engines.retire("rollout-fast-1", "hung")
    assert fast.retired == ["rollout-fast-1"]


def test_the_least_busy_engine_is_that_of_all_fleets() -> None:
    engines, _, _ = fleets()
    engines.call("rollout-fast-0", "generate", {}, context=1, deadline_s=1)
    assert engines.least_busy(["rollout-fast-0", "rollout-slow-0"]) == "rollout-slow-0"
    assert engines.least_busy([]) is None


def test_a_fleet_without_restarts_ends_the_run_only_if_it_was_the_last() -> None:
    engines, fast, slow = fleets()
    fast.ready.clear()
    fast.events = [Exhausted(reason="fast is spent")]
    slow.events = [Joined(actor="rollout-slow-0", value=None)]
    assert [type(event) for event in engines.poll()] == [Joined]
    slow.ready.clear()
    slow.events = [Exhausted(reason="slow is spent")]
    assert engines.poll() == [Exhausted(reason="slow is spent")]


def test_each_fleet_has_its_own_cap() -> None:
    config = make_config(
        rollout={"max_concurrent_groups": 4}, fleets={"a": {"max_concurrent_groups": 2}, "b": {}}
    )
    engines = ("rollout-a-0", "rollout-b-7")
    joined = [announced(config, Joined(actor=name, value=loaded(0))) for name in engines]
    assert [event.capacity for event in joined] == [2, 4]
