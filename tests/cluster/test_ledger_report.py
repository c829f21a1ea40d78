"""``safeladder ledger``: what it counts, what it finds broken, and that it only looks."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.ledger import Ledger
from cluster.ledger_report import read_report
from cluster.run_directory import RunDirectory
from cluster.transitions import DropReason, GroupState, Transition
from learners.batches import read_batch, write_batch
from safeladder.records import TrainGroup, TrainingSample, TrainOrder
from tests.cluster.coordinator_play import make_config
from tests.cluster.run_on_disk import DriverOnDisk
from tests.cluster.test_ledger import drop, life

GENERATED, LEASED, TRAINED = GroupState.GENERATED, GroupState.LEASED, GroupState.TRAINED


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    config = make_config(run={"name": "books", "root": str(tmp_path)})
    return RunDirectory.create(config)


@pytest.fixture
def played(run: RunDirectory) -> RunDirectory:
    """Two steps, a kill, and two steps more; batches on disk."""
    with Ledger.open(run.ledger, "books") as ledger:
        DriverOnDisk(run, run.config(), ledger).train(until=2)
        DriverOnDisk(run, run.config(), ledger, step=1).train(until=3)
    return run


def invoke(run: RunDirectory | Path, *options: str) -> Result:
    path = run if isinstance(run, Path) else run.path
    return CliRunner().invoke(app, ["ledger", str(path), *options])


def ended(ordinal: int, tokens: int, reason: DropReason | None) -> list[Transition]:
    """A group of one length that was trained in a step of its own, or dropped once generated."""
    moves = life(ordinal, TRAINED, step=ordinal + 1, version=ordinal)
    if reason is not None:
        moves = [*life(ordinal, GENERATED), drop(ordinal, GENERATED, reason)]
    return [
        t if t.header is None else replace(t, header=replace(t.header, lengths=(tokens,)))
        for t in moves
    ]


def test_drop_rates_stand_by_reason_and_by_decile_of_length(run: RunDirectory) -> None:
    """Of 20 groups of 10, 20 … 200 tokens the four longest are stale: that is a bias of length."""
    with Ledger.open(run.ledger, "books") as ledger:
        fence = ledger.raise_fence()
        for i in range(20):
            ledger.apply(ended(i, 10 * (i + 1), DropReason.STALE if i >= 16 else None), fence)
        never = [*life(20, LEASED), replace(drop(20, LEASED, DropReason.FAILED), header=None)]
        ledger.apply([*never, *life(21, GENERATED)], fence)
    report = read_report(run)
    assert (report.issued, report.ended.num_groups, report.ended.trained) == (22, 21, 16)
    assert report.ended.rate("stale") == pytest.approx(4 / 21)
    assert report.ended.rate("failed") == pytest.approx(1 / 21)
    assert [(d.number, d.min_tokens, d.max_tokens) for d in report.deciles] == [
        (n, 20 * n - 10, 20 * n) for n in range(1, 11)
    ]
    assert [d.ended.drop_rate for d in report.deciles] == [0.0] * 8 + [1.0] * 2
    assert report.never_generated.dropped == {"failed": 1}
    assert report.states == {"trained": 16, "dropped": 5, "generated": 1}


def test_equal_lengths_are_in_one_decile(run: RunDirectory) -> None:
    with Ledger.open(run.ledger, "books") as ledger:
        fence = ledger.raise_fence()
        for i in range(12):
            ledger.apply(
                ended(i, 5 if i < 9 else 6, DropReason.FILTERED if i == 0 else None), fence
            )
    first, second = read_report(run).deciles
    assert (first.number, first.ended.num_groups, second.number) == (1, 9, 8)
    assert first.ended.drop_rate == pytest.approx(1 / 9)


def test_a_played_run_with_a_restart_is_sound_and_says_so(played: RunDirectory) -> None:
    done = invoke(played)
    assert done.exit_code == 0, done.output
    assert "sound: ledger, history and 3 batches agree" in done.output
    report = json.loads(invoke(played, "--json").output)
    assert report["is_sound"]
    assert (report["violations"], report["batches"]["compared"]) == ([], 3)
    first, second = report["starts"]
    assert (first["fence"], first["checkpoint_step"], first["taken_back"]) == (1, 0, 0)
    assert (second["fence"], second["checkpoint_step"]) == (2, 1)
    assert second["taken_back"] > 0
    assert sum(report["staleness"].values()) == report["states"]["trained"] == 6
    assert sum(report["attempts"].values()) == report["issued"] == sum(report["states"].values())


def test_a_finished_run_is_read_without_a_file_beside_it(played: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in played.path.rglob("*")}
    assert invoke(played).exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in played.path.rglob("*")}


def test_a_live_run_is_read_while_its_driver_writes_and_keeps_its_fence(
    run: RunDirectory,
) -> None:
    with Ledger.open(run.ledger, "books") as ledger:
        fence = ledger.raise_fence()
        ledger.apply(life(0, LEASED), fence)
        writer = sqlite3.connect(run.ledger, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        report = json.loads(invoke(run, "--json").output)
        writer.execute("ROLLBACK")
        writer.close()
        assert (report["states"], report["is_sound"]) == ({"leased": 1}, True)
        ledger.apply(life(1, LEASED), fence)  # the fence is still ours
    assert json.loads(invoke(run, "--json").output)["states"] == {"leased": 2}


def test_a_broken_ledger_ends_with_7_and_the_sentence(played: RunDirectory) -> None:
    connection = sqlite3.connect(played.ledger)
    connection.execute("UPDATE groups SET state = 'leased' WHERE ordinal = 0")
    connection.commit()
    connection.close()
    done = invoke(played)
    assert done.exit_code == 7
    assert "BROKEN: the present state is not the end of its history: 0/0 (1 in all)" in done.output
    assert "invariants of the ledger are broken" in done.stderr
    as_json = invoke(played, "--json")
    assert as_json.exit_code == 7
    assert not json.loads(as_json.stdout)["is_sound"]


def rewritten(
    run: RunDirectory, step: int, samples: list[TrainingSample], audit: str | None = None
) -> None:
    """Write the batch of a step again."""
    texts = json.loads(read_batch(run.batches / f"step-{step}.safetensors")[1]["audit"])
    groups = tuple(
        TrainGroup(
            key=samples[0].group, attempt=1, payload=None, reference=None, rewards=(), audit=text
        )
        for text in (texts if audit is None else [audit])
    )
    write_batch(run.batches, TrainOrder(step=step, fence=2, groups=groups), samples)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("twice", "it holds a sample twice"),
        ("lacking", "which the ledger says that it trained"),
        ("stranger", "it holds 7/7, which the ledger does not say that it trained"),
        ("old", "a token is 5 versions old, 1 are allowed"),
        ("invalid", "in spite of an INVALID verdict"),
        ("unjudged", "a group is trained whole or not at all"),
        ("cut", "step-2.safetensors cannot be read"),
        ("pipe", "step-2.safetensors cannot be read"),
    ],
)
def test_a_batch_that_the_ledger_does_not_know_is_found(
    played: RunDirectory, damage: str, sentence: str
) -> None:
    path = played.batches / "step-2.safetensors"
    samples, metadata = read_batch(path)
    verdicts = [v for text in json.loads(metadata["audit"]) for v in json.loads(text)]
    if damage == "twice":
        rewritten(played, 2, [*samples, samples[0]])
    elif damage == "lacking":
        kept = [s for s in samples if s.group != samples[0].group]
        rewritten(played, 2, kept)
    elif damage == "stranger":
        rewritten(played, 2, [*samples, replace(samples[0], group=(7, 7), sample_id="7/7/0")])
    elif damage == "old":
        rewritten(played, 2, [replace(s, token_versions=s.token_versions - 5) for s in samples])
    elif damage == "invalid":
        spoiled = [{**v, "status": "invalid", "score": None} for v in verdicts]
        rewritten(played, 2, samples, json.dumps(spoiled))
    elif damage == "unjudged":
        rewritten(played, 2, samples, json.dumps(verdicts[1:]))
    elif damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(path.read_bytes()[:200])
    done = invoke(played)
    assert done.exit_code == 7
    assert sentence in done.output


def test_a_batch_that_is_gone_is_told_but_breaks_nothing(played: RunDirectory) -> None:
    (played.batches / "step-2.safetensors").unlink()
    done = invoke(played)
    assert done.exit_code == 0
    assert "batches not there: 1, of steps 2\n" in done.output


@pytest.mark.parametrize("case", ["no run", "no ledger", "no database", "folder", "pipe"])
def test_a_path_that_holds_no_ledger_gets_one_sentence(run: RunDirectory, case: str) -> None:
    path = run.path
    if case == "no run":
        path = path / "nowhere"
    elif case == "no database":
        run.ledger.write_text("no database" * 100)
    elif case == "folder":
        run.ledger.mkdir()
    elif case == "pipe":
        os.mkfifo(run.ledger)
    done = invoke(path)
    assert done.exit_code == (6 if case == "no run" else 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"safeladder: {path}")
