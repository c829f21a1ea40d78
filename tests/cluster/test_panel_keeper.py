"""Whatever goes wrong with a swap refuses the swap; what canaries say is said of who was asked."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from actors.verifier import VerifierStatus
from cluster.canaries import load_canaries, requests_of
from cluster.crew import Crew
from cluster.fleet import Joined, Lost, Reply
from cluster.panel import Panel, verifier_fleet
from cluster.panel_keeper import CanaryCall, PanelKeeper, require_right_canaries
from cluster.protocol import Event, PanelChanged
from cluster.run_directory import RunDirectory
from cluster.services import VerifierServices
from cluster.swaps import PanelSource, SwapRequest, Swaps
from cluster.telemetry import Telemetry
from cluster.verifier_client import GrpcVerifier
from cluster.verifier_service import VerifierServer
from rewards.judging import Judgment, SampleVerifier
from safeladder.config import Config, PrincipleConfig
from safeladder.errors import EnvironmentUnfitError, VerifierUnavailableError
from safeladder.records import ScoreRequest, Verdict, VerdictStatus
from tests.cluster.coordinator_play import make_config
from tests.cluster.scripted_fleet import ScriptedFleet

OLD, NEW = verifier_fleet("safety"), verifier_fleet("safety", 1)


class FakeCrew:
    def __init__(self, config: Config) -> None:
        self.panel = Panel.first(config)
        self.verifiers = {OLD: named(OLD)}
        self.verifier_versions = {"safety": "old 1"}
        self.started: dict[str, ScriptedFleet] = {}

    @property
    def judges(self) -> dict[str, ScriptedFleet]:
        return {name: self.verifiers[fleet] for name, fleet in self.panel.fleets.items()}

    def verifier_fleet(self, fleet: str, principle: str, settings: PrincipleConfig) -> Any:
        self.started[fleet] = named(fleet)
        return self.started[fleet]


class NoServices:
    def add(self, config: Config, principles: Collection[str], config_file: Path) -> Config:
        return config


class Ear:
    def __init__(self) -> None:
        self.alerts: list[str] = []
        self.wrong: list[int] = []

    def alert(self, kind: str, text: str) -> None:
        self.alerts.append(text)

    def canaries(self, principle: str, wrong: int) -> None:
        self.wrong.append(wrong)

    def panel_changed(self, panel: Panel, versions: dict[str, str], text: str) -> None:
        self.alerts.append(text)


class Stage:
    """A run with one principle, and a keeper of its panel."""

    def __init__(self, folder: Path) -> None:
        self.canaries = folder / "canaries.jsonl"
        self.data = folder / "data.jsonl"
        self.write(0.9)
        self.data.write_text('{"prompt": "hello", "route": "safety"}\n')
        self.config = self.wanted(2)
        self.run = RunDirectory.create(self.config)
        self.swaps = Swaps(self.run)
        self.crew, self.ear = FakeCrew(self.config), Ear()
        self.keeper = PanelKeeper(
            PanelSource.read(self.config),
            cast(Crew, self.crew),
            self.swaps,
            cast(VerifierServices, NoServices()),
            cast(Telemetry, self.ear),
        )

    def wanted(self, min_words: int) -> Config:
        settings = {
            "verifier": "rewards.helpfulness:Normal",
            "options": {"min_words": min_words},
            "canaries": str(self.canaries),
        }
        return make_config(
            run={"name": "swap", "root": str(self.canaries.parent)},
            data={"train": [str(self.data)]},
            principles={"safety": settings},
        )

    def write(self, low: float) -> None:
        row = {"prompt": "p", "response": "r", "route": "safety", "expect": {"min": low}}
        self.canaries.write_text(json.dumps(row) + "\n")

    def ask(self, min_words: int) -> SwapRequest:
        """Ask for a swap; returns when its new fleet is starting or it is answered."""
        request = self.swaps.submit(self.wanted(min_words))
        deadline = time.monotonic() + 20
        while NEW not in self.crew.started and not request.answer.exists():
            assert time.monotonic() < deadline
            self.keeper.step()
            time.sleep(0.01)
        return request

    def warm_up(self, score: float = 1.0) -> list[Event]:
        fleet = self.crew.started[NEW]
        fleet.events.append(Joined(actor="new-0", value=status()))
        self.keeper.step()
        (call,) = fleet.take()
        fleet.events.append(Reply(actor="new-0", context=call.context, value=said(score)))
        return self.keeper.step()

    def answer(self, request: SwapRequest) -> tuple[str, str]:
        answer = json.loads(request.answer.read_text())
        return answer["state"], answer["text"]


def named(fleet: str) -> ScriptedFleet:
    scripted = ScriptedFleet(f"{fleet}-0")
    scripted.name = fleet
    return scripted


def status() -> VerifierStatus:
    return VerifierStatus(
        actor="new-0", principle="safety", verifier="new", verifier_version="2", calls=0,
        payloads_lost=0, verdicts={}, invalid={}, latency_p50_ms=None, latency_p99_ms=None,
    )  # fmt: skip


def said(score: float) -> tuple[Verdict, ...]:
    return (
        Verdict(
            sample_id="canary/0", principle="safety", verifier="v", verifier_version="1",
            status=VerdictStatus.OK, score=score,
        ),
    )  # fmt: skip


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.keeper.close()


def test_a_swap_takes_force_once_its_new_fleet_is_right_on_the_canaries(stage: Stage) -> None:
    request = stage.ask(5)
    (changed, *_) = stage.warm_up()
    assert isinstance(changed, PanelChanged)
    assert stage.crew.panel.fleets == {"safety": NEW}
    assert stage.crew.verifier_versions == {"safety": "new 2"}
    assert stage.answer(request)[0] == "in force"
    assert stage.run.config() == stage.wanted(5)


def test_files_that_go_away_after_the_check_do_not_end_the_run(stage: Stage) -> None:
    request = stage.ask(5)
    stage.canaries.unlink()
    request.path.unlink()
    assert isinstance(stage.warm_up()[0], PanelChanged)
    assert stage.answer(request)[0] == "in force"


@pytest.mark.parametrize("error", [RuntimeError("boom"), UnicodeDecodeError("x", b"", 0, 1, "y")])
def test_whatever_fails_in_the_preparation_refuses_the_swap(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("cluster.panel_keeper.check_swap", fail)
    state, text = stage.answer(stage.ask(5))
    assert state == "refused"
    assert type(error).__name__ in text


def test_canaries_that_cannot_be_read_refuse_the_swap(stage: Stage) -> None:
    stage.canaries.unlink()
    state, text = stage.answer(stage.ask(5))
    assert state == "refused"
    assert "principles.safety.canaries" in text


def test_a_swap_that_was_withdrawn_never_takes_force(stage: Stage) -> None:
    request = stage.ask(5)
    with pytest.raises(EnvironmentUnfitError, match="nothing changed"):
        stage.swaps.await_answer(request, -1.0)
    assert stage.warm_up() == []
    assert stage.answer(request)[0] == "withdrawn"
    assert stage.crew.panel.fleets == {"safety": OLD}
    assert stage.crew.verifier_versions == {"safety": "old 1"}
    assert stage.crew.started[NEW].ready == []  # ended
    assert stage.run.config() == stage.config


def test_a_full_disk_refuses_the_swap(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    request = stage.ask(5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert stage.warm_up() == []
    assert stage.answer(request) == ("refused", "OSError: [Errno 28] No space left on device")
    assert stage.crew.panel.fleets == {"safety": OLD}


def test_every_round_of_canaries_is_another_attempt(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = stage.crew.verifiers[OLD]
    now_s = time.monotonic()
    for _ in range(3):
        monkeypatch.setattr("cluster.panel_keeper.time.monotonic", lambda now_s=now_s: now_s)
        stage.keeper.step()
        now_s += 1e6
    attempts = [call.arguments["requests"][0].attempt for call in fleet.take()]
    assert len(attempts) == len(set(attempts)) == 3
    assert all(0 < attempt < 2**31 for attempt in attempts)


def test_a_late_answer_of_a_replaced_verifier_is_no_drift(stage: Stage) -> None:
    stage.keeper.step()
    (call,) = stage.crew.verifiers[OLD].take()
    stage.keeper.take(call.context, said(1.0))
    assert stage.ear.wrong == [0]
    stage.ask(5)
    stage.warm_up()
    stage.keeper.take(call.context, said(0.0))
    assert stage.ear.wrong == [0]


def test_an_answer_is_held_against_the_canaries_that_were_asked(stage: Stage) -> None:
    old = load_canaries(stage.canaries, {"safety"})
    stage.keeper.take(CanaryCall("safety", OLD, old), said(0.5))
    assert stage.ear.wrong == [1]
    assert "drifts" in stage.ear.alerts[-1]


def test_the_first_panel_must_be_right_before_anything_is_trained(stage: Stage) -> None:
    canaries = {"safety": load_canaries(stage.canaries, {"safety"})}
    crew, fleet = cast(Crew, stage.crew), stage.crew.verifiers[OLD]
    fleet.events.append(Reply(actor="a", context=None, value=said(1.0)))
    require_right_canaries(crew, canaries)
    fleet.events.append(Reply(actor="a", context=None, value=said(0.0)))
    with pytest.raises(VerifierUnavailableError, match="wrong on 1 of 1"):
        require_right_canaries(crew, canaries)
    fleet.events.append(Lost(actor="a", reason="gone", contexts=()))
    with pytest.raises(VerifierUnavailableError, match="gone"):
        require_right_canaries(crew, canaries)


class Drifting(SampleVerifier):
    """A verifier that can go wrong from one moment to the next."""

    drift = False

    def __init__(self) -> None:
        super().__init__("safety", {})

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        return Judgment(0.0 if self.drift else 1.0)


def test_a_service_that_drifts_is_seen_in_the_next_round(stage: Stage) -> None:
    canaries = load_canaries(stage.canaries, {"safety"})

    async def two_rounds() -> list[float | None]:
        verifier = Drifting()
        server = VerifierServer({"safety": verifier})
        client = GrpcVerifier("safety", f"127.0.0.1:{await server.start('127.0.0.1:0')}", 5.0)
        await client.start()
        first = await client.score(requests_of(canaries, 1))
        verifier.drift = True
        second = await client.score(requests_of(canaries, 2))
        await client.close()
        await server.stop(0)
        return [verdict.score for verdict in (*first, *second)]

    assert asyncio.run(two_rounds()) == [1.0, 0.0]
