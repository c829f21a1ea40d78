"""A curriculum under the accounting promise: each group asks one thing for ever, and a sampler
stands where the surviving history says."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cluster import ledger as ledger_module
from cluster.ledger import Ledger
from cluster.protocol import GrantLease, Score, StepCommitted, Train
from cluster.run_directory import RunDirectory
from cluster.simulated_roles import Faults
from cluster.simulator import SimulationReport, simulate
from cluster.telemetry import Telemetry
from cluster.terminal import Terminal
from cluster.transitions import GroupState, Transition
from curricula.sampler import Sampler
from safeladder.config import CurriculumConfig
from safeladder.draws import Draw, DrawHistory, Outcome, Passes
from safeladder.records import GroupKey, InvalidCause, Message, Prompt, StepReport

from .coordinator_play import Judgement, Play, make_config
from .test_telemetry import Link

ADAPTIVE = {"schedule": "adaptive", "decay": 0.8}
DYING = Faults(
    driver_dies=0.05,
    engine_dies=0.1,
    payload_is_lost=0.1,
    verdict_is_invalid=0.05,
    ghost_answers=0.5,
    answer_is_slow=0.1,
)


def rows(count: int = 20, route: str = "safety") -> list[Prompt]:
    return [
        Prompt(id=f"p{n}", messages=(Message("user", "q"),), route=route, meta={"n": n})
        for n in range(count)
    ]


def sampler(**keys: Any) -> Sampler:
    settings = CurriculumConfig.model_validate({**ADAPTIVE, **keys})
    return Sampler(rows(), settings, seed=3)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ledger of a simulation stays."""
    path, opened = tmp_path / "ledger.sqlite", Ledger.open
    monkeypatch.setattr(
        Ledger, "open", lambda place, run, prompts="": opened(place or path, run, prompts)
    )
    return path


def simulated(source: Sampler, seed: int, faults: Faults = DYING) -> SimulationReport:
    config = make_config(
        run={"steps": 8},
        rollout={"actors": 3, "group_size": 4},
        schedule={"max_staleness": 2, "groups_per_step": 3},
        checkpoint={"every_steps": 3},
    )
    return simulate(config, source, faults, seed)


# ---- whole runs in virtual time


def test_after_any_deaths_the_ledger_alone_restores_the_sampler_that_finished(path: Path) -> None:
    deaths = 0
    for seed in range(5):
        path.unlink(missing_ok=True)
        live = sampler()
        report = simulated(live, seed)
        assert (report.finished, report.violations) == (True, ()), report
        deaths += report.num_driver_deaths
        with Ledger.open(path, "play") as ledger:
            history = ledger.snapshot().draws
        restored = sampler()
        restored.restore(history)
        assert restored.dump() == live.dump()
        key = GroupKey(9, 0)
        for _ in range(20):
            key = live.next_key(key)
            assert restored.draw(key) == live.draw(key)
    assert deaths > 5


def test_the_witness_sees_a_group_that_asks_something_else_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restore = Sampler.restore

    def redrawn(self: Sampler, history: DrawHistory) -> None:
        restore(self, history)
        for key in history.living:
            del self._living[key]
            self.draw(key)

    monkeypatch.setattr(Sampler, "restore", redrawn)
    found = [v for seed in range(5) for v in simulated(sampler(), seed).violations]
    assert any("asks p" in violation for violation in found)


def test_the_audit_sees_outcomes_that_a_restart_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_module, "FORGET_UNDONE", "SELECT :step")
    with Ledger.open(None, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(), 1)
        ledger.raise_fence(0)
        assert ledger.audit() == ["an outcome belongs to a group that has none: 0/0 (1 in all)"]


# ---- the ledger


DRAW = Draw(row=4, prompt="p4", label="safety", bucket="", why="focus", predicted=0.5, version=0)
PASSES = Passes(0, 4, 3, {"safety": (4, 3)}, ((4, 3), (2, 0)))
KEY = GroupKey(0, 0)


def life(until: GroupState = GroupState.TRAINED, *, step: int = 1) -> list[Transition]:
    """A group's way with its draw and its outcome."""
    from .test_ledger import life as plain

    way = []
    for t in plain(0, until, step=step):
        facts = {name: getattr(t, name) for name in Transition.__slots__}
        if t.source is None:
            facts["draw"] = DRAW
        if t.target is GroupState.ADMITTED:
            facts |= {"passes": PASSES, "counts_after": step}
        way.append(Transition(**facts))
    return way


def test_a_draw_is_written_with_its_key_and_an_outcome_with_its_admission() -> None:
    with Ledger.open(None, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(GroupState.SCORED), 1)
        assert ledger.snapshot().draws == DrawHistory(
            asked={4: 1}, reasons={("safety", "focus"): 1}, living={KEY: DRAW}, newest=(4,)
        )
        ledger.apply(life()[-2:], 1)
        assert ledger.snapshot().draws == DrawHistory(
            asked={4: 1},
            reasons={("safety", "focus"): 1},
            outcomes=(Outcome(1, KEY, 4, PASSES),),
            newest=(4,),
            version=1,
        )
        assert ledger.audit() == []


def test_a_step_that_the_checkpoint_covers_keeps_its_outcomes_though_its_rows_were_lost() -> None:
    with Ledger.open(None, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(GroupState.ADMITTED), 1)  # the driver dies before it hears of the step
        ledger.raise_fence(1)
        draws = ledger.snapshot().draws
        assert (draws.version, draws.outcomes) == (1, (Outcome(1, KEY, 4, PASSES),))
        assert ledger.audit() == []


def test_an_outcome_is_forgotten_with_its_step_and_with_a_lost_payload() -> None:
    with Ledger.open(None, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(), 1)
        ledger.raise_fence(0)
        draws = ledger.snapshot().draws
        assert (draws.outcomes, draws.living) == ((), {KEY: DRAW}), "asked again, as recorded"
        assert ledger.audit() == []
    with Ledger.open(None, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(GroupState.ADMITTED), 1)
        lost = Transition(key=KEY, source=GroupState.ADMITTED, target=GroupState.PENDING, attempt=1)
        ledger.apply([lost], 1)
        assert ledger.snapshot().draws.outcomes == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DELETE FROM draws", None),
        ("DELETE FROM draws WHERE ordinal = 0", "a group was issued without its draw: 0/0"),
        ("INSERT INTO draws VALUES (7, 0, 1, 'p', 'l', '', 'pass', 0, 0)", "belongs to no group"),
        ("UPDATE draws SET version = 9", "rests on a step that was not there yet"),
        ("UPDATE outcomes SET counts_after = 2", "counts after another step than its group's"),
        ("UPDATE outcomes SET passed = 5", "is of no number of siblings"),
    ],
)
def test_the_audit_finds_draws_and_outcomes_that_do_not_fit(
    tmp_path: Path, change: str, told: str | None
) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, "run") as ledger:
        ledger.raise_fence()
        ledger.apply(life(), 1)
        issue = Transition(key=GroupKey(0, 1), source=None, target=GroupState.PENDING, attempt=1)
        ledger.apply([Transition(**{**fields(issue), "draw": DRAW})], 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with Ledger.open(path, "run") as ledger:
        found = " | ".join(ledger.audit())
    assert told in found if told else found == ""


def fields(transition: Transition) -> dict[str, Any]:
    return {name: getattr(transition, name) for name in Transition.__slots__}


def test_a_ledger_from_before_curricula_is_audited_and_gone_on_with(tmp_path: Path) -> None:
    from cluster.ledger_audit import violations

    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, "run") as ledger:
        ledger.raise_fence()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE draws; DROP TABLE outcomes")
        assert violations(connection, 1, 1) == []
    with Ledger.open(path, "run") as ledger:
        assert ledger.snapshot().draws == DrawHistory()
        assert ledger.audit() == []


# ---- the coordinator


def played(judge: Callable[[Score, int], Judgement], **sections: dict[str, Any]) -> Play:
    """Three steps at bound 0, and the leases of the fourth."""
    config = make_config(
        **{
            "run": {"steps": 9},
            "rollout": {"group_size": 4, "max_concurrent_groups": 100},
            "schedule": {"groups_per_step": 3, "max_staleness": 0},
            "curriculum": ADAPTIVE,
            **sections,
        }
    )
    play = Play(config, prompts=sampler())
    for step in range(1, 4):
        while play.coordinator.status().running_step is None:
            for grant in play.take(GrantLease):
                play.generate(grant, step - 1)
            for call in play.take(Score):
                play.judge(call, [judge(call, index) for index in call.indexes])
        play.commit()
        play.publish(step, "rollout-0")
    return play


def halves(call: Score, index: int) -> Judgement:
    return float(index % 2)


def test_the_draw_of_a_group_stands_in_the_same_batch_as_its_lease() -> None:
    play = played(halves)
    grants = play.take(GrantLease)
    assert len(grants) == 3
    issued = {t.key: t.draw for t in play.transitions if t.source is None}
    for grant in grants:
        draw = issued[grant.lease.key]
        assert draw is not None
        assert (draw.prompt, draw.version) == (grant.lease.prompt.id, 3)


def test_outcomes_are_told_by_verdicts_not_by_rewards() -> None:
    def judge(call: Score, index: int) -> Judgement:
        return {0: 1.0, 1: 0.5, 2: 0.49, 3: InvalidCause.TIMEOUT}[index]

    play = played(judge, principles={"safety": {"verifier": "a:B", "on_invalid": "drop_sample"}})
    told = [t.passes for t in play.transitions if t.target is GroupState.ADMITTED]
    assert told == [Passes(v, 3, 2, {"safety": (3, 2)}) for v in (0, 0, 0, 1, 1, 1, 2, 2, 2)]


def test_groups_that_all_pass_are_dropped_and_tell_as_much() -> None:
    def judge(call: Score, index: int) -> Judgement:
        return 1.0 if call.key.ordinal % 2 else float(index % 2)

    play = played(judge)
    drops = [t for t in play.transitions if t.target is GroupState.DROPPED]
    assert drops
    assert all(t.passes is not None and t.passes.passed == 4 for t in drops)
    assert all(t.passes and t.counts_after == t.passes.version + 1 for t in drops), "bound 0"


def test_a_sibling_passes_if_every_principle_in_question_says_so() -> None:
    def judge(call: Score, index: int) -> Judgement:
        if call.principle == "format":
            return float(index > 0)
        return None if index == 3 else float(index % 2)

    principles = {name: {"verifier": "a:B"} for name in ("safety", "format")}
    routes = {"safety": {"safety": 1.0, "format": 1.0}}
    play = played(judge, principles=principles, routes=routes)
    admitted = [t.passes for t in play.transitions if t.target is GroupState.ADMITTED]
    assert admitted[0] == Passes(0, 4, 2, {"format": (4, 3), "safety": (3, 1)})
    only = played(
        judge, principles=principles, routes=routes, curriculum={"principles": ["format"]}
    )
    admitted = [t.passes for t in only.transitions if t.target is GroupState.ADMITTED]
    assert admitted[0] == Passes(0, 4, 3, {"format": (4, 3)})


def test_a_driver_that_died_before_its_commit_is_followed_by_one_that_draws_the_same() -> None:
    with Ledger.open(None, "run") as ledger:
        fence = ledger.raise_fence()
        source = sampler()
        play = Play(
            make_config(curriculum=ADAPTIVE),
            prompts=source,
            fence=fence,
        )
        lost = [t.draw for t in play.transitions if t.source is None]
        assert lost  # and never written
        fence = ledger.raise_fence()
        again = Play(
            make_config(curriculum=ADAPTIVE),
            prompts=sampler(),
            fence=fence,
            restored=ledger.snapshot(),
        )
        assert [t.draw for t in again.transitions if t.source is None] == lost


def test_a_step_tells_shares_and_passes_of_what_ended_in_it() -> None:
    play = played(lambda call, index: float(index > 0))
    metrics = play.coordinator.asking.metrics
    assert metrics["curriculum/label/safety/share"] == 1.0
    assert metrics["curriculum/label/safety/passed"] == 0.75
    assert metrics["curriculum/bucket/in window/share"] == 1.0
    json.dumps(dict(metrics))


def test_they_stand_in_the_row_of_the_step(tmp_path: Path) -> None:
    play = Play(make_config(curriculum=ADAPTIVE), prompts=sampler())
    link, terminal = Link(), Terminal(io.StringIO(), 3)
    run = RunDirectory(tmp_path)
    telemetry = Telemetry(play.config, run, link, terminal, pid=1, fence=1)  # type: ignore[arg-type]
    play.fill_step()
    (train,) = play.take(Train)
    report = StepReport(step=1, version=1, metrics={}, seconds=1.0)
    play.send(StepCommitted(report))
    telemetry.trained(train.order, report, play.coordinator)
    with patch("cluster.telemetry.fetch", side_effect=KeyError):
        telemetry.turn(play.coordinator)
    assert link.rows()[0]["curriculum/why/focus/share"] == 1.0


def test_a_plain_order_leaves_no_draws() -> None:
    play = Play()
    play.fill_step()
    assert play.take(Train)
    assert all(t.draw is None and t.passes is None for t in play.transitions)
    assert play.coordinator.asking.metrics == {}
