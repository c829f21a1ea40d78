"""Requests for a swap are files: whole, numbered, answered once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.canaries import faults_of, load_canaries
from cluster.panel import Panel
from cluster.run_directory import RunDirectory, Status
from cluster.swaps import PanelSource, Swaps, check_swap, kept_principles, swap_principles
from rewards import judge
from safeladder.config import Config
from safeladder.config_loading import config_hash, load_config
from safeladder.errors import (
    ConfigError,
    DataError,
    EnvironmentUnfitError,
    VerifierUnavailableError,
)
from safeladder.records import InvalidCause, Verdict, VerdictStatus
from tests.cluster.coordinator_play import make_config

OVERLAY = "principles: {safety: {options: {min_words: 5}}}\n"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "hello", "route": "safety"}\n')
    return make_config(run={"name": "swap", "root": str(tmp_path)}, data={"train": [str(data)]})


@pytest.fixture
def run(config: Config) -> RunDirectory:
    return RunDirectory.create(config)


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "overlay.yaml"
    path.write_text(OVERLAY)
    return path


def test_requests_are_taken_in_order_and_once(run: RunDirectory, config: Config) -> None:
    swaps = Swaps(run)
    assert swaps.next_request() is None
    first, second = swaps.submit(config), swaps.submit(config)
    assert (first.number, second.number) == (1, 2)
    assert swaps.next_request() == first
    assert first.config() == config
    swaps.refuse(first, "no")
    assert swaps.next_request() == second
    assert json.loads(first.answer.read_text())["state"] == "refused"


def test_what_is_in_force_stands_in_the_runs_config_for_resume(
    run: RunDirectory, config: Config, overlay: Path
) -> None:
    swaps = Swaps(run)
    wanted = load_config([run.config_file, overlay])
    request = swaps.submit(wanted)
    panel = Panel.first(config).changed(wanted, kept=())
    text = swaps.commit(request, wanted, panel, {"safety": "rules 2"})
    assert text is not None
    assert "generation 1" in text
    assert "safety: rules 2" in text
    assert run.config() == wanted != config
    assert (run.path / "config.sha256").read_text().strip() == config_hash(wanted)
    assert swaps.next_request() is None


def test_only_what_differs_is_built_anew(run: RunDirectory, overlay: Path) -> None:
    current = PanelSource.read(run.config())
    assert kept_principles(current, current) == {"safety"}
    wanted = PanelSource.read(load_config([run.config_file, overlay]))
    assert kept_principles(current, wanted) == set()


def test_a_file_with_other_content_at_the_same_path_is_a_change(tmp_path: Path) -> None:
    template, canaries = tmp_path / "judge.yaml", tmp_path / "canaries.jsonl"
    released = Path(judge.__file__).parent / "judges" / "value.yaml"
    template.write_text(released.read_text())
    write(canaries, canary())
    options = {"template": str(template), "endpoint": "http://127.0.0.1:9", "model": "m"}
    settings = {"verifier": "rewards.judge:Judge", "options": options, "canaries": str(canaries)}
    config = make_config(principles={"safety": settings})
    current = PanelSource.read(config)
    assert kept_principles(current, PanelSource.read(config)) == {"safety"}
    write(canaries, canary(expect={"min": 0.6}))
    assert kept_principles(current, PanelSource.read(config)) == set()
    write(canaries, canary())
    template.write_text(released.read_text().replace("good", "fine"))
    assert kept_principles(current, PanelSource.read(config)) == set()


def test_the_first_answer_decides(run: RunDirectory, config: Config) -> None:
    swaps = Swaps(run)
    before = run.config_file.read_text()
    request = swaps.submit(make_config(run={"name": "other"}))
    with pytest.raises(EnvironmentUnfitError, match="did not answer"):
        swaps.await_answer(request, 0.0)
    panel = Panel.first(config)
    assert swaps.commit(request, request.config(), panel, {"safety": "rules 2"}) is None
    swaps.refuse(request, "too late")
    assert json.loads(request.answer.read_text())["state"] == "withdrawn"
    assert run.config_file.read_text() == before
    left = {path.name for path in (*run.path.iterdir(), *request.path.parent.iterdir())}
    assert not [name for name in left if "partial" in name or name.startswith(".")]


def test_an_asker_that_gives_up_too_late_reports_what_was_done(
    run: RunDirectory, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps = Swaps(run)
    request = swaps.submit(config)
    status = run.status()

    def answered_meanwhile(_: RunDirectory) -> Status | None:
        swaps.commit(request, config, Panel.first(config), {"safety": "rules 2"})
        return status

    monkeypatch.setattr(RunDirectory, "status", answered_meanwhile)
    assert swaps.await_answer(request, -1.0)["state"] == "in force"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner: {lr: 0.5}", "learner differs"),
        ("principles: {safety: {verifier: 'rewards.safety:Safty'}}", "did you mean 'SafetyRules'"),
        ("principles: {extra: {verifier: 'rewards.format:StopWithinLimit'}}", "in no route"),
        ("routes: {safety: {tone: 1.0}}", "names the principle 'tone'"),
    ],
)
def test_a_wrong_wish_is_refused_with_a_sentence(
    run: RunDirectory, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        check_swap(run.config(), Swaps(run).submit(load_config([run.config_file, path])))


def test_a_run_that_has_ended_or_is_silent_is_told_apart_from_one_that_refuses(
    run: RunDirectory, overlay: Path
) -> None:
    with pytest.raises(EnvironmentUnfitError, match="did not answer"):
        swap_principles(run.path, [overlay], 0.1)
    assert Swaps(run).next_request() is None  # withdrawn: a later driver must not take it
    run.write_status(Status(state="finished", pid=1, exit_code=0))
    with pytest.raises(EnvironmentUnfitError, match="ended"):
        swap_principles(run.path, [overlay], 5.0)


def test_a_refusal_says_why(run: RunDirectory, overlay: Path) -> None:
    swaps = Swaps(run)
    request = swaps.submit(run.config())
    swaps.refuse(request, "wrong on 1 of 2 canaries")
    assert swaps.await_answer(request, 1)["text"] == "wrong on 1 of 2 canaries"
    following = run.path / "swaps" / "2.json"
    following.write_text(json.dumps({"state": "refused", "text": "canaries"}))
    with pytest.raises(VerifierUnavailableError, match="nothing changed: canaries"):
        swap_principles(run.path, [overlay], 5.0)


def canary(**changes: object) -> dict[str, object]:
    return {"prompt": "p", "response": "r", "route": "safety", "expect": {"min": 0.5}} | changes


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verdict(score: float | None, label: str | None = None) -> Verdict:
    return Verdict(
        sample_id="x", principle="safety", verifier="v", verifier_version="1", score=score,
        status=VerdictStatus.INVALID if score is None else VerdictStatus.OK, label=label,
        cause=InvalidCause.TIMEOUT if score is None else None,
    )  # fmt: skip


def test_a_canary_passes_on_the_right_score_and_label_only(tmp_path: Path) -> None:
    expect = {"label": "Unsafe", "max": 0.2}
    canaries = load_canaries(write(tmp_path / "c.jsonl", canary(expect=expect)), {"safety"})
    assert canaries[0].request.response == "r"
    assert "expect" not in canaries[0].request.meta
    assert faults_of(canaries, [verdict(0.1, "Unsafe")]) == []
    for wrong in (verdict(0.3, "Unsafe"), verdict(0.1, "Safe"), verdict(None)):
        assert len(faults_of(canaries, [wrong])) == 1
    assert faults_of(canaries, []) == ["0 verdicts on 1 canaries"]


@pytest.mark.parametrize(
    "expect", [None, {}, {"lable": "x"}, {"min": 0.9, "max": 0.1}, {"min": "high"}]
)
def test_a_canary_without_a_clear_expectation_is_named(tmp_path: Path, expect: object) -> None:
    path = write(tmp_path / "c.jsonl", canary(), canary(response="s", expect=expect))
    with pytest.raises(DataError, match=r"c\.jsonl:2: column expect"):
        load_canaries(path, {"safety"})
