"""When a round of probes is asked, of whom, and what it measures: fleets are scripted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from actors.verifier import ScoredGroup
from cluster import evaluation
from cluster.fleet import Lost, Reply
from cluster.probe_keeper import FIRST_EPOCH, ProbeKeeper, outcome, probe_prompts
from cluster.probe_log import ProbeLog, Ruling
from safeladder.records import InvalidCause, Message, Prompt, Verdict, VerdictStatus

from .coordinator_play import make_config
from .scripted_fleet import Call, ScriptedFleet
from .test_evaluation import answer

SAFE = [Prompt(id=f"s{i}", messages=(Message("user", "?"),), route="safety") for i in range(2)]
SETS = {"safe": {"data": ["s.jsonl"], "principle": "safety"}}


def verdict(call: Call, score: float | None) -> Reply:
    fields: dict[str, Any] = {
        "sample_id": "-2/0/0", "principle": "safety", "verifier": "v", "verifier_version": "1",
        "status": VerdictStatus.INVALID if score is None else VerdictStatus.OK, "score": score,
        "cause": InvalidCause.ERROR if score is None else None,
    }  # fmt: skip
    value = ScoredGroup(
        actor=call.actor, key=call.arguments["key"], attempt=1, principle="safety",
        verdicts=(Verdict(**fields),),
    )  # fmt: skip
    return Reply(actor=call.actor, context=call.context, value=value)


class Play:
    """Two prompts, one principle, one engine."""

    def __init__(self, file: Path, step: int = 0, fence: int = 1, **sections: Any) -> None:
        self.engines = ScriptedFleet("rollout-0", "rollout-1")
        self.verifiers = ScriptedFleet("judge-0")
        self.telemetry = Mock()
        tree = {"probes": {"every_steps": 10, "sets": SETS}, "checkpoint": {"keep": 9}}
        self.keeper = ProbeKeeper(
            make_config(**(tree | sections)),
            {"safe": SAFE},
            self.engines,  # type: ignore[arg-type]
            lambda: {"safety": self.verifiers},  # type: ignore[dict-item]
            self.telemetry,
            file,
            fence=fence,
            step=step,
        )

    def asked(self) -> list[Call]:
        self.keeper.step()
        return self.engines.take()

    def round(self, version: int, *scores: float | None) -> Ruling | None:
        """A whole round on an engine that serves ``version``."""
        self.keeper.serves("rollout-0", version)
        for call in self.asked():
            self.keeper.on_rollout(answer(call, version))
        self.keeper.step()
        for call, score in zip(self.verifiers.take(), scores, strict=True):
            self.keeper.on_verifier("scripted", verdict(call, score))
        return self.keeper.step()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(evaluation, "fetch", lambda handle, _: handle)
    return tmp_path / "probes.jsonl"


def test_a_round_is_asked_at_the_start_and_every_so_many_versions(file: Path) -> None:
    play = Play(file)
    assert play.round(0, 1.0, 0.5) is None
    for version in (1, 9):
        play.keeper.serves("rollout-0", version)
        assert play.asked() == [], version
    assert play.round(11, 0.0, 0.5) is None, "an engine may pass over a version"
    assert [(one.step, dict(one.values)) for one in play.keeper.rounds] == [
        (0, {"safe": 0.75}),
        (11, {"safe": 0.25}),
    ]
    assert play.telemetry.probed.call_count == 2


def test_one_engine_answers_greedily_under_keys_that_no_other_round_has(file: Path) -> None:
    play = Play(file)
    play.keeper.serves("rollout-0", 0)
    play.keeper.serves("rollout-1", 0)
    first, second = play.asked()
    assert {first.actor, second.actor} == {"rollout-0"}
    lease = first.arguments["lease"]
    assert lease.key.epoch == FIRST_EPOCH
    assert (lease.sampling.temperature, lease.sampling.num_samples) == (0.0, 1)


def test_the_engine_that_answers_takes_no_newer_weights_until_it_has(file: Path) -> None:
    play = Play(file)
    play.keeper.serves("rollout-0", 0)
    calls = play.asked()
    assert play.keeper.holds("rollout-0")
    assert not play.keeper.holds("rollout-1")
    for call in calls:
        play.keeper.on_rollout(answer(call, 0))
    assert not play.keeper.holds("rollout-0"), "the verifiers need no engine"
    assert play.keeper.is_open


def test_an_engine_that_dies_leaves_the_round_to_the_next_one(file: Path) -> None:
    play = Play(file)
    play.keeper.serves("rollout-0", 0)
    contexts = tuple(call.context for call in play.asked())
    play.keeper.on_rollout(Lost(actor="rollout-0", reason="kill -9", contexts=contexts))
    play.keeper.step()
    assert not play.keeper.is_open
    assert play.keeper.rounds == []
    play.keeper.serves("rollout-1", 0)
    assert {call.actor for call in play.asked()} == {"rollout-1"}


def test_a_late_answer_to_a_round_that_was_given_up_is_not_taken(file: Path) -> None:
    play = Play(file)
    play.keeper.serves("rollout-0", 0)
    late = [answer(call, 0) for call in play.asked()]
    play.keeper.on_rollout(
        Lost(actor="rollout-0", reason="?", contexts=tuple(r.context for r in late))
    )
    play.keeper.step()
    play.keeper.serves("rollout-1", 0)
    play.asked()
    for reply in late:
        play.keeper.on_rollout(reply)
    play.keeper.step()
    assert play.verifiers.take() == []


def test_a_failed_verdict_is_no_number_and_too_many_are_no_value(file: Path) -> None:
    play = Play(file)
    play.round(0, 0.5, None)
    play.round(10, None, None)
    assert [dict(one.values) for one in play.keeper.rounds] == [{"safe": 0.5}, {}]
    assert "safe has no value" in play.telemetry.alert.call_args.args[1]


def test_what_follows_is_written_down_before_it_is_told(file: Path) -> None:
    wire = {"wire": {"probe": "safe", "max_drop": 0.5, "action": "rollback"}}
    play = Play(file, tripwires=wire)
    play.round(0, 1.0, 1.0)
    ruling = play.round(10, 0.0, 0.5)
    assert ruling is not None
    assert (ruling.kind, ruling.to) == ("rollback", 0)
    assert ProbeLog(file).forbids(1, 5) is not None
    play.telemetry.alert.assert_called_once_with("tripwire", ruling.text)


def test_a_resumed_run_does_not_ask_again_what_it_has_been_told(file: Path) -> None:
    Play(file).round(10, 0.5, 0.5)
    again = Play(file, step=12, fence=2)
    again.keeper.serves("rollout-0", 12)
    assert again.asked() == []
    behind = Play(file, step=8, fence=3)
    behind.keeper.serves("rollout-0", 8)
    assert len(behind.asked()) == 2, "the round at step 10 is no history any more"


def test_an_exit_that_a_killed_driver_did_not_carry_out_still_stands(file: Path) -> None:
    target = {"target": {"probe": "safe", "at_least": 0.5}}
    Play(file, exit=target).round(10, 0.5, 0.5)
    standing = Play(file, step=12, fence=2, exit=target).keeper.standing()
    assert standing is not None
    assert standing.reason == "target"
    assert Play(file, step=8, fence=3, exit=target).keeper.standing() is None


def test_a_pause_is_over_once_somebody_resumes(file: Path) -> None:
    wire = {"wire": {"probe": "safe", "at_least": 0.5}}
    Play(file, tripwires=wire).round(10, 0.0, 0.0)
    assert Play(file, step=12, fence=2, tripwires=wire).keeper.standing() is None


def test_a_summary_says_why_it_ended_what_was_measured_and_what_tripped(file: Path) -> None:
    wire = {"wire": {"probe": "safe", "at_least": 0.5}}
    play = Play(file, tripwires=wire)
    play.round(0, 1.0, 1.0)
    assert outcome(play.keeper, None) == {"exit": {"reason": "steps"}, "probes": {"safe": 1.0}}
    ruling = play.round(10, 0.0, 0.5)
    told = outcome(play.keeper, ruling)
    assert told["exit"]["reason"] == "wire"
    assert told["probes"] == {"safe": 0.25}
    assert "probe safe is at 0.250 at step 10" in told["tripwires"][0]


def test_without_probes_nothing_is_asked_and_no_file_is_made(file: Path) -> None:
    play = Play(file)
    keeper = ProbeKeeper(
        make_config(), {}, play.engines, dict, Mock(), file.with_name("none"), fence=1, step=0  # type: ignore[arg-type]
    )  # fmt: skip
    keeper.serves("rollout-0", 0)
    assert (keeper.step(), keeper.standing(), keeper.is_open) == (None, None, False)
    assert not file.with_name("none").exists()


def test_a_probe_asks_the_first_rows_of_its_files(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": str(i), "prompt": "?", "route": "safety"}) for i in range(5)]
    rows.write_text("\n".join(lines) + "\n")
    sets = {"safe": {"data": [str(rows)], "principle": "safety", "limit": 3}}
    prompts = probe_prompts(make_config(probes={"sets": sets}))
    assert [prompt.id for prompt in prompts["safe"]] == ["0", "1", "2"]
