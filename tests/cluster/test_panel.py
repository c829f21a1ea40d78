"""A hot swap as the coordinator sees it: at a group boundary, without a mixture, nothing lost."""

from __future__ import annotations

from cluster.panel import Panel, verifier_fleet
from cluster.protocol import (
    ActorJoined,
    ActorLost,
    GrantLease,
    PanelChanged,
    PauseTraining,
    PayloadLost,
    ResumeTraining,
    RetireFleet,
    Score,
    ScoringLost,
    Train,
    VerdictsReady,
)
from cluster.transitions import DropReason
from safeladder.config import Config
from safeladder.records import InvalidCause
from tests.cluster.coordinator_play import Play, make_config, verdict

OLD = verifier_fleet("safety")
NEW = verifier_fleet("safety", 1)


def with_principles(config: Config, routes: dict[str, float], changed: str = "") -> Config:
    principles = {
        name: {"verifier": f"a:{changed if name == 'safety' else ''}B"} for name in routes
    }
    return make_config(
        principles=principles,
        routes={"safety": routes},
        schedule=config.schedule.model_dump(),
    )


def swap(play: Play, panel: Panel) -> None:
    play.send(PanelChanged(panel))
    for fleet in set(panel.fleets.values()):
        if fleet not in (OLD, verifier_fleet("format")):
            play.send(ActorJoined(fleet, f"{fleet}-0", 1000))


def test_a_group_that_is_being_scored_stays_with_the_old_verifier_and_the_next_has_the_new() -> (
    None
):
    play = Play()
    first, second = play.take(GrantLease)[:2]
    play.generate(first)
    panel = Panel.first(play.config).changed(
        with_principles(play.config, {"safety": 1.0}, "New"), kept=()
    )
    assert panel.fleets == {"safety": NEW}
    swap(play, panel)
    play.generate(second)
    old, new = play.take(Score)
    assert (old.key, old.fleet) == (first.lease.key, OLD)
    assert (new.key, new.fleet) == (second.lease.key, NEW)
    play.judge(new, [0.0, 1.0])
    assert play.take(Train) == play.take(RetireFleet) == []  # the old one still has a group
    play.judge(old, [1.0, 0.0])
    (train,) = play.take(Train)
    assert [group.rewards for group in train.order.groups] == [(1.0, 0.0), (0.0, 1.0)]
    play.tick(1)
    assert play.take(RetireFleet) == [RetireFleet(OLD)]


def test_an_invalid_verdict_is_asked_again_of_the_verifier_that_gave_it() -> None:
    play = Play(make_config(principles={"safety": {"verifier": "a:B", "on_invalid": "retry"}}))
    play.generate(play.take(GrantLease)[0])
    (call,) = play.take(Score)
    swap(play, Panel.first(play.config).changed(play.config, kept=()))
    play.send(ScoringLost(call.key, call.attempt, call.fleet, call.call))
    play.tick(1)
    (again,) = play.take(Score)
    assert (again.fleet, again.call) == (OLD, 2)
    assert play.take(RetireFleet) == []


def test_principles_can_be_added_removed_and_weighed_anew() -> None:
    play = Play(
        make_config(
            principles={"safety": {"verifier": "a:B"}, "format": {"verifier": "a:B"}},
            routes={"safety": {"safety": 1.0, "format": 1.0}},
        )
    )
    wanted = with_principles(play.config, {"safety": 2.0, "tone": 0.5})
    swap(play, Panel.first(play.config).changed(wanted, kept={"safety"}))
    play.generate(play.take(GrantLease)[0])
    calls = {call.principle: call for call in play.take(Score)}
    assert {name: call.fleet for name, call in calls.items()} == {
        "safety": OLD,
        "tone": verifier_fleet("tone", 1),
    }
    play.judge(calls["safety"], [1.0, 0.0])
    play.judge(calls["tone"], [1.0, 0.0])
    play.tick(1)
    assert play.take(RetireFleet) == [RetireFleet(verifier_fleet("format"))]
    group = play.coordinator._groups[calls["safety"].key]
    assert group.rewards == (2.5, 0.0)
    assert group.scores is not None
    assert group.scores.generation == 1


def test_what_a_retired_fleet_says_is_late() -> None:
    play = Play()
    swap(play, Panel.first(play.config).changed(play.config, kept=()))
    play.tick(1)
    assert play.take(RetireFleet) == [RetireFleet(OLD)]
    key = play.take(GrantLease)[0].lease.key
    call = Score(key, 1, OLD, 1, "safety", "payload", (0,), 30.0)
    before = play.coordinator.status().late_results
    play.send(ActorJoined(OLD, "ghost", 4))
    play.send(VerdictsReady(key, 1, OLD, 1, (verdict(call, 0, 1.0),)))
    play.send(ScoringLost(key, 1, OLD, 1))
    play.send(ActorLost(OLD, "ghost"))
    assert play.coordinator.status().late_results == before + 2


def test_two_swaps_in_a_row_leave_one_panel() -> None:
    play = Play()
    panel = Panel.first(play.config)
    for _ in range(2):
        panel = panel.changed(play.config, kept=())
        swap(play, panel)
    play.tick(1)
    retired = {command.fleet for command in play.take(RetireFleet)}
    assert retired == {OLD, NEW}
    play.generate(play.take(GrantLease)[0])
    assert [call.fleet for call in play.take(Score)] == [verifier_fleet("safety", 2)]


def test_a_group_that_waits_for_a_replaced_verifier_is_generated_anew_for_the_new_one() -> None:
    play = Play(make_config(principles={"safety": {"verifier": "a:B", "on_invalid": "pause"}}))
    for grant in play.take(GrantLease)[:2]:
        play.generate(grant)
    stuck, other = play.take(Score)
    play.judge(stuck, [InvalidCause.ERROR, 1.0])
    assert len(play.take(PauseTraining)) == 1
    swap(play, Panel.first(play.config).changed(play.config, kept=()))
    assert play.take(ResumeTraining) == [ResumeTraining()]
    again = next(g for g in play.take(GrantLease) if g.lease.key == stuck.key)
    assert again.lease.attempt == 2
    play.judge(other, [0.0, 1.0])  # is being scored, and stays with the old verifier
    play.generate(again)
    (call,) = play.take(Score)
    assert (call.key, call.fleet) == (stuck.key, NEW)
    play.judge(call, [0.0, 1.0])
    assert len(play.take(Train)) == 1


def test_a_swap_of_another_principle_leaves_the_pause_as_it_is() -> None:
    play = Play(
        make_config(
            principles={
                "safety": {"verifier": "a:B", "on_invalid": "pause"},
                "format": {"verifier": "a:B"},
            },
            routes={"safety": {"safety": 1.0, "format": 1.0}},
        )
    )
    play.generate(play.take(GrantLease)[0])
    calls = {call.principle: call for call in play.take(Score)}
    play.judge(calls["safety"], [InvalidCause.ERROR, 1.0])
    swap(play, Panel.first(play.config).changed(play.config, kept={"safety"}))
    assert play.take(ResumeTraining) == []
    play.tick(5.1)
    assert [call.fleet for call in play.take(Score)] == [OLD]


def two_principles() -> Config:
    judge = {"verifier": "a:B", "on_invalid": "drop_group"}
    return make_config(
        principles={"safety": judge, "format": judge},
        routes={"safety": {"safety": 1.0, "format": 1.0}},
    )


def scored_by_a_retired_verifier() -> tuple[Play, Score]:
    play = Play()
    play.generate(play.take(GrantLease)[0])
    (call,) = play.take(Score)
    play.judge(call, [0.0, 1.0])
    swap(play, Panel.first(play.config).changed(play.config, kept=()))
    play.tick(1)
    assert play.take(RetireFleet) == [RetireFleet(OLD)]
    return play, call


def test_a_scored_group_whose_verifier_is_retired_can_lose_its_payload() -> None:
    play, call = scored_by_a_retired_verifier()
    play.send(PayloadLost(call.key, call.attempt))
    play.tick(1)
    again = next(g for g in play.take(GrantLease) if g.lease.key == call.key)
    assert again.lease.attempt == 2


def test_a_scored_group_whose_verifier_is_retired_can_go_stale() -> None:
    play, call = scored_by_a_retired_verifier()
    group = play.coordinator._groups[call.key]
    play.coordinator.drop(group, DropReason.STALE, "too old")
    assert play.dropped == {"stale": 1}


def test_one_principle_can_drop_a_group_after_the_verifier_of_the_other_is_retired() -> None:
    play = Play(two_principles())
    play.generate(play.take(GrantLease)[0])
    calls = {call.principle: call for call in play.take(Score)}
    play.judge(calls["safety"], [1.0, 0.0])
    swap(play, Panel.first(play.config).changed(play.config, kept={"format"}))
    play.tick(1)
    assert play.take(RetireFleet) == [RetireFleet(OLD)]
    play.judge(calls["format"], [InvalidCause.ERROR, 1.0])
    assert play.dropped == {"invalid": 1}


def test_a_group_that_waits_for_two_replaced_verifiers_is_given_up_once() -> None:
    judge = {"verifier": "a:B", "on_invalid": "pause"}
    play = Play(
        make_config(
            principles={"safety": judge, "format": judge},
            routes={"safety": {"safety": 1.0, "format": 1.0}},
            rollout={"max_attempts": 1},
        )
    )
    play.generate(play.take(GrantLease)[0])
    for call in play.take(Score):
        play.judge(call, [InvalidCause.ERROR, 1.0])
    swap(play, Panel.first(play.config).changed(play.config, kept=()))
    assert play.dropped == {"failed": 1}
    assert play.take(ResumeTraining) == [ResumeTraining()]
