"""Which verdict moved which update: the log, the ledger and the batches, read together."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.ledger import Ledger
from cluster.run_directory import RunDirectory
from cluster.transitions import DropReason, GroupState
from cluster.verdict_log import read_verdicts
from learners.batches import write_batch
from safeladder.records import GroupKey, TrainingSample, TrainOrder
from tests.cluster.coordinator_play import make_config
from tests.cluster.test_ledger import drop, life


def row(sample_id: str, score: float | None, cause: str | None = None) -> dict[str, object]:
    status = "ok" if cause is None else "invalid"
    return {
        "sample_id": sample_id, "principle": "safety", "verifier": "v", "verifier_version": "1",
        "status": status, "score": score, "label": None, "evidence": "why", "cause": cause,
        "retryable": False, "latency_ms": 1.0,
    }  # fmt: skip


def trained(sample_id: str, reward: float) -> TrainingSample:
    epoch, ordinal, _ = map(int, sample_id.split("/"))
    return TrainingSample(
        sample_id=sample_id, group=GroupKey(epoch, ordinal),
        prompt_tokens=np.array([1], np.int32), tokens=np.array([2], np.int32),
        loss_mask=np.ones(1, np.float32), behavior_logprobs=np.zeros(1, np.float32),
        token_versions=np.zeros(1, np.int32), reference_logprobs=None, reward=reward,
        finish_reason="stop",
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Group 0/0 was trained in step 2, without its invalid sample; group 0/1 was dropped."""
    run = RunDirectory.create(make_config(run={"name": "log", "root": str(tmp_path)}))
    with Ledger.open(run.ledger, "log") as ledger:
        fence = ledger.raise_fence()
        moves = [*life(0, GroupState.TRAINED, step=2), *life(1, GroupState.GENERATED)]
        ledger.apply([*moves, drop(1, GroupState.GENERATED, DropReason.FILTERED)], fence)
    rows = [
        row("0/0/0", 0.25), row("0/0/1", None, "timeout"), row("0/1/0", 1.0),
        row("heldout-1", 1.0), row("0/0/2", 0.75),
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in rows) + '{"sample_id": "0/0/'  # cut by a kill
    run.verdicts.write_text(text)
    order = TrainOrder(step=2, fence=1, groups=())
    write_batch(run.batches, order, [trained("0/0/0", 0.5), trained("0/0/2", 1.5)])
    return run


def test_each_verdict_comes_with_its_groups_fate_and_its_samples_reward(run: RunDirectory) -> None:
    found = {v.verdict["sample_id"]: v for v in read_verdicts(run)}
    assert sorted(found) == ["0/0/0", "0/0/1", "0/0/2", "0/1/0"]
    assert [found[f"0/0/{i}"].reward for i in range(3)] == [0.5, None, 1.5]
    assert (found["0/0/1"].fate.state, found["0/0/1"].fate.step) == ("trained", 2)
    assert (found["0/1/0"].fate.state, found["0/1/0"].fate.reason) == ("dropped", "filtered")
    assert found["0/1/0"].reward is None


def test_verdicts_can_be_narrowed(run: RunDirectory) -> None:
    def ids(**by: object) -> list[str]:
        return [v.verdict["sample_id"] for v in read_verdicts(run, **by)]  # type: ignore[arg-type]

    assert ids(group=GroupKey(0, 1)) == ["0/1/0"]
    assert ids(step=2) == ["0/0/0", "0/0/1", "0/0/2"]
    assert ids(status="invalid") == ["0/0/1"]


def test_the_command_prints_json_lines_and_refuses_what_is_misspelled(run: RunDirectory) -> None:
    result = CliRunner().invoke(app, ["verdicts", str(run.path), "--group", "0/0", "--json"])
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["reward"] for line in lines] == [0.5, None, 1.5]
    for wrong in (["--group", "x"], ["--principle", "sfety"], ["--status", "bad"]):
        result = CliRunner().invoke(app, ["verdicts", str(run.path), *wrong])
        assert result.exit_code == 2
        assert wrong[1] in result.output


def said(run: RunDirectory, *words: str) -> str:
    """What the command answers to something that is wrong: one sentence."""
    result = CliRunner().invoke(app, ["verdicts", str(run.path), *words])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("safeladder: ").rstrip()


@pytest.mark.parametrize("words", [(), ("--replay",)])
def test_a_damaged_ledger_is_one_sentence(run: RunDirectory, words: tuple[str, ...]) -> None:
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    run.ledger.write_bytes(b"no ledger" * 500)
    assert said(run, *words).startswith(f"{run.ledger}: cannot be read as the ledger of a run (")
    run.ledger.unlink()
    sqlite3.connect(run.ledger).close()
    run.ledger.touch()
    assert "no such table: groups" in said(run, *words)


@pytest.mark.parametrize("words", [(), ("--replay",)])
def test_a_group_that_the_run_never_had_is_named(run: RunDirectory, words: tuple[str, ...]) -> None:
    told = said(run, "--group", "99999/1", *words)
    assert told == f"--group 99999/1: no such group in {run.path}; its groups are 0/0 to 0/1"
    assert "is no epoch/ordinal" in said(run, "--group", "9" * 5000 + "/1", *words)


@pytest.mark.parametrize("words", [(), ("--replay",)])
def test_a_step_that_the_run_never_took_is_named(run: RunDirectory, words: tuple[str, ...]) -> None:
    told = said(run, "--step", "99", *words)
    assert told == f"--step 99: no such step in {run.path}; its steps go up to 2"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("garbage", "is no line that a run writes"),
        ("[1]", "is no line that a run writes"),
        (json.dumps({**row("0/0/0", 1.0), "principle": None}), "column principle is missing"),
        (json.dumps({"sample_id": "0/0/0"}), "column principle is missing"),
        (json.dumps({**row("0/0/0", 1.0), "score": "1"}), "column score is missing or is none"),
    ],
)
def test_a_damaged_line_is_named(run: RunDirectory, line: str, told: str) -> None:
    lines = run.verdicts.read_text().split("\n")
    run.verdicts.write_text("\n".join([lines[0], line, *lines[1:]]))
    assert said(run).startswith(f"{run.verdicts}:2: {told}")


def test_what_a_kill_left_is_passed_over_even_if_the_run_went_on(run: RunDirectory) -> None:
    before = run.verdicts.read_text()
    run.verdicts.write_text(f"{before}\n{json.dumps(row('0/1/1', 1.0))}\n")
    assert len(list(read_verdicts(run))) == 5


def test_a_damaged_batch_is_named(run: RunDirectory) -> None:
    (batch,) = run.batches.glob("*.safetensors")
    batch.write_bytes(b"no batch")
    assert said(run).startswith(f"{batch}: cannot be read as a step's batch (")
