"""Engines join and leave a live run: the coordinator and the request files are real."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.fleet_keeper import (
    LOOK_EVERY_S,
    FleetKeeper,
    parse_sizes,
    resize_fleets,
    wanted_sizes,
)
from cluster.fleet_usage import FleetUsage
from cluster.profile_file import read_profiles
from cluster.protocol import (
    ActorLost,
    EngineLeaving,
    EngineReported,
    GrantLease,
    GroupInterrupted,
    InterruptLease,
)
from cluster.requests import Requests
from cluster.rollout_fleets import RolloutFleets
from cluster.run_directory import RunDirectory, Status
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.errors import ConfigError
from safeladder.partials import PartialHeader

from .coordinator_play import Play, make_config
from .scripted_fleet import ScriptedFleet, loaded

SIZES = {"rollout-h100": 2, "rollout-l40s": 1}


class Stage:
    """A run with two fleets, whose engines have joined a coordinator."""

    def __init__(self, root: Path) -> None:
        config = make_config(
            run={"root": str(root)}, fleets={"h100": {"actors": 2}, "l40s": {}},
            schedule={"groups_per_step": 4},
        )  # fmt: skip
        self.run = RunDirectory.create(config)
        self.run.write_status(Status(state="running", pid=1, step=0, version=0))
        self.h100 = ScriptedFleet("rollout-h100-0", "rollout-h100-1")
        self.l40s = ScriptedFleet("rollout-l40s-0")
        fleets: Any = {"rollout-h100": self.h100, "rollout-l40s": self.l40s}
        self.said: list[str] = []
        self.usage = FleetUsage()
        telemetry: Any = SimpleNamespace(
            usage=self.usage, alert=lambda _, text: self.said.append(text)
        )
        self.now_s = 0.0
        self.keeper = FleetKeeper(RolloutFleets(fleets), self.run, telemetry, self._clock)
        self.play = Play(config, start=False)
        for engine in (*self.h100.ready, *self.l40s.ready):
            self.play.join_engine(engine, version=0)
        self.play.tick()

    def _clock(self) -> float:
        return self.now_s

    def step(self) -> list[Any]:
        self.now_s += LOOK_EVERY_S
        events = self.keeper.step(self.play.coordinator)
        self.play.send(*events)
        return events

    def ask(self, text: str) -> dict[str, Any]:
        requests = Requests(self.run, "fleets")
        request = requests.submit(text)
        self.events = self.step()
        answer: dict[str, Any] = json.loads(request.answer.read_text())
        return answer

    def leases(self) -> dict[str, int]:
        return {e.name: e.leases for e in self.play.coordinator.status().engines}


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def hand_back(play: Play, stop: InterruptLease) -> None:
    header = PartialHeader(
        key=stop.key, attempt=stop.attempt, fence=1, engine=stop.engine, cause="asked",
        num_tokens=5, min_version=0, generate_s=1.0,
    )  # fmt: skip
    play.send(GroupInterrupted(header, f"part of {stop.key}"))


def test_a_fleet_grows_and_nobody_is_disturbed(stage: Stage) -> None:
    answer = stage.ask("h100: 6")
    assert answer["state"] == "in force"
    assert "rollout-h100 2 → 6" in answer["text"]
    assert (stage.h100.size, stage.l40s.size, stage.events) == (6, 1, [])


def test_an_engine_that_leaves_gives_its_groups_to_others_and_is_then_ended(stage: Stage) -> None:
    granted = stage.play.take(GrantLease)
    held = [grant for grant in granted if grant.engine == "rollout-h100-1"]
    assert held
    stage.ask("h100: 1")
    assert stage.events == [EngineLeaving("rollout-h100-1")]
    stops = stage.play.take(InterruptLease)
    assert [stop.key for stop in stops] == [grant.lease.key for grant in held]
    assert stage.step() == []
    assert stage.h100.dismissed == [], "it still holds groups"
    for stop in stops:
        hand_back(stage.play, stop)
    again = stage.play.take(GrantLease)
    assert {grant.lease.key for grant in again} == {stop.key for stop in stops}
    assert "rollout-h100-1" not in {grant.engine for grant in again}
    assert stage.step() == [ActorLost("rollout", "rollout-h100-1")]
    assert stage.h100.dismissed == ["rollout-h100-1"]
    status = stage.play.coordinator.status()
    assert status.failed_attempts == 0
    assert status.counts["leased"] == len(granted)
    assert "rollout-h100-1" not in stage.leases()
    assert stage.step() == []


def test_an_engine_that_dies_while_it_leaves_is_not_ended_twice(stage: Stage) -> None:
    stage.ask("l40s: 0")
    stage.play.send(ActorLost("rollout", "rollout-l40s-0"))
    assert stage.step() == []
    assert stage.l40s.dismissed == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("h200: 3", "there is no fleet 'h200'; the run has h100, l40s"),
        ("h100: -1", "-1 is no number of engines"),
        ("h100: many", "'many' is no number of engines"),
        ("h100: true", "True is no number of engines"),
        ("{h100: 0, l40s: 0}", "no engine would be left"),
        ("- h100", "it names no fleet"),
        ("h100: [", "no YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        wanted_sizes(text, SIZES)


def test_a_refusal_changes_nothing_and_says_why(stage: Stage) -> None:
    answer = stage.ask("h200: 3")
    assert answer["state"] == "refused"
    assert "no fleet 'h200'" in answer["text"]
    assert (stage.h100.size, stage.l40s.size) == (2, 1)


def test_a_fleet_may_be_named_in_full() -> None:
    assert wanted_sizes("rollout-h100: 3", SIZES) == {"rollout-h100": 3}
    assert wanted_sizes("rollout: 3", {"rollout": 1}) == {"rollout": 3}


def test_profiles_are_on_disk_for_who_plans(stage: Stage) -> None:
    profile = EngineProfile(kv_tokens=1000, max_sequences=8, speeds=((1, 10.0), (8, 60.0)))
    stage.h100.beats = {
        "rollout-h100-0": loaded(0, profile=profile),
        "rollout-h100-1": loaded(0),
    }
    stage.step()
    assert read_profiles(stage.run.profiles) == {"rollout-h100": {"rollout-h100-0": profile}}
    printed = CliRunner().invoke(app, ["fleets", str(stage.run.path)]).output
    assert "rollout-h100-0" in printed
    assert "10 (1), 60 (8)" in printed


def test_a_heartbeat_tells_the_coordinator_once_how_full_an_engine_is(stage: Stage) -> None:
    load = EngineLoad(kv_share=0.5, running=3, waiting=0, preemptions=0)
    stage.h100.beats = {"rollout-h100-0": loaded(0, load=load), "rollout-h100-1": loaded(0)}
    assert stage.step() == [EngineReported("rollout-h100-0", load)]
    assert stage.step() == []
    assert stage.usage.row(1.0)["fleet/rollout-h100/kv"] == 0.5


def test_a_broken_file_of_profiles_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text('{"rollout": {"rollout-0": {"kv_tokens": 3}}}')
    with pytest.raises(ConfigError, match="is no file of profiles"):
        read_profiles(path)


def test_a_run_that_is_over_answers_nobody(stage: Stage) -> None:
    stage.run.write_status(Status(state="finished", pid=1, step=3, version=3, exit_code=0))
    done = CliRunner().invoke(app, ["fleets", str(stage.run.path), "--set", "h100=3"])
    assert done.exit_code != 0
    assert "ended; nothing changed" in done.output


@pytest.mark.parametrize(
    "setting", ["h100", "h100=", "=3", "h100=-1", "h100=2.5", "h100=" + "9" * 5000]
)
def test_a_setting_is_a_fleet_and_a_number(setting: str) -> None:
    with pytest.raises(ConfigError, match="write fleet=engines"):
        parse_sizes([setting])


def test_the_verb_asks_and_waits(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.requests.time.sleep", lambda _: stage.step())
    assert "l40s 1 → 4" in resize_fleets(stage.run.path, {"l40s": 4}, 10.0)
    with pytest.raises(ConfigError, match=r"the run refuses, nothing changed: .* no fleet"):
        resize_fleets(stage.run.path, {"b200": 4}, 10.0)
