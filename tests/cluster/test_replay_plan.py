"""What a replay finds out before it loads a model; the learner's part is played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger
from cluster.replay_plan import parse_steps, plan_replay
from cluster.run_directory import RunDirectory
from cluster.transitions import GroupState
from learners.batches import build_samples, read_batch, write_batch
from learners.checkpoints import CheckpointManifest, commit_checkpoint, write_durably
from learners.step_log import StepLog
from safeladder.errors import ConfigError, NotResumableError
from safeladder.records import StepReport, TrainOrder, WeightManifest
from tests.cluster.test_ledger import life
from tests.learners.ranks import make_config, make_order


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Four steps of one rank, as far as the disk knows; checkpoints of steps 2 and 3."""
    config = make_config(tmp_path / "model", tmp_path)
    run = RunDirectory.create(config)
    with Ledger.open(run.ledger, config.run.name) as ledger:
        fence = ledger.raise_fence()
        log = StepLog(run.steps, config, fence)
        for step in (1, 2, 3, 4):
            order = make_order(step)
            payloads = [group.payload for group in order.groups]
            references = [group.reference for group in order.groups]
            write_batch(run.batches, order, build_samples(order.groups, payloads, references))
            metrics = {"loss": 0.1 + step / 3, "trained_tokens_per_s": 5.0}
            log.took(StepReport(step=step, version=step, metrics=metrics, seconds=1.0), fence)
            log.published(WeightManifest(version=step, fence=fence, tensors=()))
            moves = life(step - 1, GroupState.TRAINED, step=step, version=step - 1)
            ledger.apply(moves, fence)
            if step in (2, 3):
                save(run, step)
    return run


def save(run: RunDirectory, step: int) -> None:
    manifest = CheckpointManifest(
        step=step, version=step, fence=1, num_updates=step, dtype="float32", config_sha256=""
    )

    def write(folder: Path) -> dict[str, str]:
        return {"model.safetensors": write_durably(folder / "model.safetensors", b"weights")}

    commit_checkpoint(run.checkpoints, manifest, write, keep=9)


def test_numbers_are_read_back_bit_for_bit_and_clocks_are_left_out(run: RunDirectory) -> None:
    plan = plan_replay(run, 1, 4)
    assert plan.log.metrics(3, 1) == {"loss": 0.1 + 3 / 3}
    digest = WeightManifest(version=3, fence=1, tensors=()).digest
    assert plan.log.digests(3, 1) == {digest}
    assert (plan.is_exact, plan.inexact) == (True, ())


def test_the_start_is_the_newest_checkpoint_before_the_first_step(run: RunDirectory) -> None:
    starts = [plan_replay(run, step, 4) for step in (1, 2, 3, 4)]
    assert [plan.start_step for plan in starts] == [0, 0, 2, 3]
    assert starts[0].start == run.config().model.path
    assert starts[3].start == run.checkpoints / "step-3"
    (run.checkpoints / "step-3" / "model.safetensors").write_bytes(b"Weights")
    plan = plan_replay(run, 4, 4)
    assert plan.start_step == 2
    assert "model.safetensors differs from its SHA-256" in plan.skipped[0]


def test_a_checkpoint_that_a_replaced_driver_finished_late_is_no_start(run: RunDirectory) -> None:
    with Ledger.open(run.ledger, run.config().run.name) as ledger:
        fence = ledger.raise_fence(checkpoint_step=2)  # and step 3 of the driver before is there
        for step in (3, 4):
            moves = life(step - 1, GroupState.TRAINED, step=step, version=step - 1, attempt=2)
            ledger.apply(moves, fence)
    plan = plan_replay(run, 4, 4)
    assert plan.start_step == 2
    assert "the driver of fence 2 went on from step 2" in plan.skipped[0]


def test_a_line_that_a_kill_cut_off_does_not_swallow_the_next_one(run: RunDirectory) -> None:
    with run.steps.open("a") as file:
        file.write('{"kind": "step", "st')
    log = StepLog(run.steps, run.config(), 2)
    log.published(WeightManifest(version=5, fence=2, tensors=()))
    records = plan_replay(run, 1, 4).log
    assert records.learner(2) is not None
    assert len(records.digests(5, 2)) == 1


@pytest.mark.parametrize("text", ["", "0", "5..2", "1-3", "1..", "٣"])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no N\.\.M of steps"):
        parse_steps(text)


def edited(run: RunDirectory, kind: str, **change: Any) -> None:
    """Change the rows of a kind in ``steps.jsonl``."""
    rows = [json.loads(line) for line in run.steps.read_text().splitlines()]
    rows = [{**row, **change} if row["kind"] == kind else row for row in rows]
    run.steps.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_is_missing_is_one_sentence(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="step 9 cannot be replayed: of its steps 1 to 4 were"):
        plan_replay(run, 3, 9)
    batch = run.batches / "step-1.safetensors"
    batch.write_bytes(batch.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"its batch step-1\.safetensors cannot be read"):
        plan_replay(run, 1, 2)
    batch.unlink()
    with pytest.raises(ConfigError, match=r"its batch step-1\.safetensors is not there; choose"):
        plan_replay(run, 1, 2)
    assert plan_replay(run, 3, 4).start_step == 2, "later steps do not need it"
    edited(run, "step", fence=2)
    with pytest.raises(ConfigError, match=r"steps\.jsonl: it has no line of driver 1"):
        plan_replay(run, 3, 4)
    run.steps.unlink()
    with pytest.raises(ConfigError, match=r"nothing to compare with in steps\.jsonl: there is no"):
        plan_replay(run, 3, 4)


def test_a_config_that_has_changed_is_named_by_its_key(run: RunDirectory) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("lr: 0.01", "lr: 0.02"))
    assert run.config_file.read_text() != text
    with pytest.raises(ConfigError, match=r"learner\.lr was 0\.01 and is 0\.02; put it back"):
        plan_replay(run, 1, 4)


def test_a_supervised_rung_that_is_gone_leaves_no_start(run: RunDirectory) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("sft: null", "sft: {data: [rows.jsonl]}"))
    assert run.config_file.read_text() != text
    with pytest.raises(NotResumableError, match="no checkpoint before it verifies, and neither"):
        plan_replay(run, 1, 4)
    assert plan_replay(run, 4, 4).start_step == 3


def test_other_versions_of_a_library_take_the_claim_back(run: RunDirectory) -> None:
    (learner, *_) = (json.loads(line) for line in run.steps.read_text().splitlines())
    edited(run, "learner", environment={**learner["environment"], "torch": "2.0.0"})
    plan = plan_replay(run, 1, 4)
    assert not plan.is_exact
    assert plan.inexact[0].startswith("torch was 2.0.0 and is ")
    edited(run, "learner", environment={**learner["environment"], "code of learners/": "other"})
    (why,) = plan_replay(run, 1, 4).inexact
    assert why.startswith("code of learners/ was other and is ")
    assert why.endswith("(host.json has the commit)")


def test_a_batch_that_an_undone_step_left_is_not_taken_for_a_later_one(run: RunDirectory) -> None:
    """Driver 2 trained step 3 anew and has not come to step 4, of which driver 1 left a batch."""
    samples, _ = read_batch(run.batches / "step-3.safetensors")
    write_batch(run.batches, TrainOrder(step=3, fence=2, groups=()), samples)
    rows = [json.loads(line) for line in run.steps.read_text().splitlines()]
    rows += [{**row, "fence": 2} for row in rows if row.get("step") == 3]
    run.steps.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="of driver 1, but driver 2 trained step 3 anew"):
        plan_replay(run, 3, 4)
