"""Random fault schedules in virtual time. A seed that fails is in the test's name."""

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from cluster.coordinator import Coordinator
from cluster.groups import Begun, Group, GroupTable
from cluster.lease_desk import LeaseDesk
from cluster.protocol import Event
from cluster.simulated_roles import Faults
from cluster.simulator import SimulationReport, simulate
from tests.cluster.coordinator_play import Prompts, make_config
from tests.simulate_faults import drawn_config, main, run_schedule


@pytest.mark.parametrize("first", range(0, 200, 10))
def test_random_fault_schedules_lose_nothing_train_nothing_twice_and_end(first: int) -> None:
    for seed in range(first, first + 10):
        report = run_schedule(seed)
        assert report.violations == (), report
        assert report.finished, report


def test_without_faults_nothing_is_late_and_nothing_fails() -> None:
    report = simulate(make_config(run={"steps": 20}), Prompts(), Faults(), 7)
    assert (report.finished, report.violations) == (True, ())
    assert report.late_results == 0
    assert set(report.dropped) <= {"filtered", "stale"}  # a straggler may be passed over
    assert sum(report.trained_by_staleness.values()) == 40
    assert max(report.trained_by_staleness) == 1


def test_bound_0_trains_every_group_at_staleness_0_under_all_faults() -> None:
    config = make_config(
        run={"steps": 10}, schedule={"max_staleness": 0}, checkpoint={"every_steps": 2}
    )
    faults = Faults.drawn(random.Random(3))
    report = simulate(config, Prompts(), replace(faults, engine_dies=0.1, driver_dies=0.01), 3)
    assert (report.finished, report.violations) == (True, ())
    assert set(report.trained_by_staleness) == {0}


def test_every_fault_is_survived_alone_at_a_high_rate() -> None:
    for name in Faults.__slots__:
        rate = 0.05 if name == "driver_dies" else 0.25
        report = simulate(
            make_config(run={"steps": 8}, reference={"always": True}, rollout={"actors": 3}),
            Prompts(),
            Faults(**{name: rate}),
            11,
        )
        assert (report.finished, report.violations) == (True, ()), name


def test_verifiers_can_be_swapped_under_all_other_faults() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        faults = replace(Faults.drawn(rng), panel_changes=0.7, payload_is_lost=0.1)
        report = simulate(drawn_config(rng), Prompts(size=20), faults, seed)
        assert (report.finished, report.violations) == (True, ()), report


def test_interrupted_leases_go_on_and_the_lengths_stay_those_sampled() -> None:
    config = make_config(
        run={"steps": 30},
        rollout={"actors": 4, "straggler_factor": 1.0, "max_concurrent_groups": 2},
        schedule={"max_staleness": 2},
    )
    faults = Faults(lease_is_stopped=0.2, engine_leaves=0.1, answer_is_slow=0.1)
    reports = [simulate(config, Prompts(), faults, seed) for seed in range(10)]
    assert all((r.finished, r.violations) == (True, ()) for r in reports)
    assert min(report.continued for report in reports) > 10
    assert sum(report.begun_anew for report in reports) > 0


def test_the_witness_sees_tokens_that_are_trained_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted group goes on whatever its age, and the age of its first tokens is lost."""
    hand_back = GroupTable.hand_back

    def young(self: GroupTable, group: Group, begun: Begun | None, detail: str) -> None:
        fresh = None if begun is None else replace(begun, min_version=1000)
        hand_back(self, group, fresh, detail)

    monkeypatch.setattr(GroupTable, "hand_back", young)
    monkeypatch.setattr(Coordinator, "_staleness", lambda self, group: 0)
    config = make_config(run={"steps": 30}, rollout={"actors": 4})
    faults = Faults(lease_is_stopped=0.3, answer_is_slow=0.2)
    reports = [simulate(config, Prompts(), faults, seed) for seed in range(5)]
    assert "is trained at staleness" in violations(reports)


def test_equal_seeds_give_equal_reports() -> None:
    assert run_schedule(17) == run_schedule(17)


def test_drivers_do_die_and_ghosts_do_answer() -> None:
    faults = Faults(driver_dies=0.05, engine_dies=0.2, ghost_answers=1.0)
    report = simulate(make_config(run={"steps": 8}), Prompts(), faults, 5)
    assert (report.finished, report.violations) == (True, ())
    assert report.num_driver_deaths > 0
    assert report.late_results > 0


@pytest.mark.parametrize(
    ("max_invalid_share", "text"),
    [(0.05, "training was paused for 3600 s"), (1.0, "groups were dropped since the last step")],
)
def test_a_verifier_that_is_never_valid_fails_the_run_in_bounded_time(
    max_invalid_share: float, text: str
) -> None:
    judge = {"verifier": "a:B", "on_invalid": "drop_group"}
    breaker = {"max_invalid_share": max_invalid_share}
    report = simulate(
        make_config(principles={"safety": judge}, reward={"breaker": breaker}),
        Prompts(),
        Faults(verdict_is_invalid=1.0),
        1,
    )
    assert report.failure is not None
    assert text in report.failure
    assert report.violations == ()


# The witness must notice when something is broken on purpose.


def broken_runs() -> list[SimulationReport]:
    return [run_schedule(seed) for seed in range(3)]


def violations(reports: list[SimulationReport]) -> str:
    return " | ".join(v for report in reports for v in report.violations)


def test_the_witness_sees_an_admission_rule_that_is_too_generous(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LeaseDesk, "_limit", lambda self, served: 10**6)
    assert "was leased at version" in violations(broken_runs())


def test_the_witness_sees_stale_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseDesk, "_limit", lambda self, served: 10**6)
    monkeypatch.setattr(Coordinator, "_staleness", lambda self, group: 0)
    found = violations(broken_runs())
    assert "is trained at staleness" in found
    assert "a group was trained at a staleness above" in found


def test_the_witness_sees_groups_that_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Coordinator.handle

    def forgetful(self: Coordinator, event: Event) -> Any:
        commands = handle(self, event)
        for group in self._groups.scored[5:]:
            self._groups._scored.pop(group.key)
            self._groups._groups.pop(group.key)
        return commands

    monkeypatch.setattr(Coordinator, "handle", forgetful)
    config = make_config(run={"steps": 6}, schedule={"max_staleness": 4, "groups_per_step": 3})
    report = simulate(config, Prompts(), Faults(), 1)
    assert any("groups leased" in violation for violation in report.violations)


def test_a_schedule_that_fails_is_told_with_the_command_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--schedules", "2", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["holds"] is True
    monkeypatch.setattr(LeaseDesk, "_limit", lambda self, served: 10**6)
    assert main(["--schedules", "2", "--seed", "1"]) == 1
    told = capsys.readouterr().out
    assert "again: python -m tests.simulate_faults --schedules 1 --seed 1" in told
    assert json.loads(told.splitlines()[-1])["holds"] is False


def test_an_end_that_does_not_come_is_a_violation() -> None:
    report = simulate(make_config(), Prompts(), Faults(), 1, horizon_s=20)
    assert not report.finished
    assert "no end within 20 virtual seconds" in report.violations[-1]
