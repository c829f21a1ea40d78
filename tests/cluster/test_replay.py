"""Every trained reward follows from the verdicts on disk, or is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.history import read_lines
from cluster.ledger import Ledger
from cluster.replay import replay
from cluster.run_directory import RunDirectory
from cluster.transitions import GroupState
from cluster.verdict_log import read_fates
from learners.batches import write_batch
from safeladder.config import Config
from safeladder.errors import ConfigError, ReplayError
from safeladder.records import GroupKey, TrainOrder
from tests.cluster.coordinator_play import make_config
from tests.cluster.run_on_disk import DriverOnDisk
from tests.cluster.test_ledger import life
from tests.cluster.test_verdict_log import trained

PRINCIPLES = ("safety", "format", "tone")
RULES: dict[str, dict[str, Any]] = {
    "additive": {},
    "gated": {"gates": ["format"]},
    "worst case": {"combine": "worst_case", "gates": ["format"]},
    "decoupled": {"combine": "decoupled"},
    "decoupled and gated": {"combine": "decoupled", "gates": ["format"]},
    "floors": {"floors": {"safety": 0.5, "tone": 0.25}},
}
BREAKER = {"breaker": {"max_invalid_share": 1.0}}
"""Else the drawn faults would open it."""


def config_of(root: Path, weights: dict[str, float], rule: dict[str, Any]) -> Config:
    return make_config(
        run={"name": "replay", "root": str(root), "steps": 9},
        principles={name: {"verifier": "a:B", "on_invalid": "drop_sample"} for name in PRINCIPLES},
        routes={"safety": weights},
        rollout={"group_size": 5, "max_concurrent_groups": 4, "max_attempts": 2},
        reward={**BREAKER, **rule},
    )


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_run_with_a_swap_and_a_resume_is_replayed_whole(
    tmp_path: Path, rule: dict[str, Any]
) -> None:
    first = config_of(tmp_path, {"safety": 1.0, "format": 0.5, "tone": 0.25}, rule)
    second = config_of(tmp_path, {"safety": 0.1, "format": 3.0, "tone": 0.7}, rule)
    third = config_of(tmp_path, {"safety": 2.0, "format": 1.0}, {})
    run = RunDirectory.create(first)
    with Ledger.open(run.ledger, "replay") as ledger:
        driver = DriverOnDisk(run, first, ledger)
        driver.train(until=2)
        driver.swap(second)
        driver.train(until=5)
        DriverOnDisk(run, third, ledger, step=4).train(until=7)  # step 5 is taken back
    found = replay(run)
    assert (found.disagreements, found.gaps) == ([], [])
    assert (found.groups, {sample.step for sample in found.samples}) == (14, set(range(1, 8)))
    weights = {sample.weights["safety"] for sample in found.samples}
    assert weights == {1.0, 0.1, 2.0}
    assert len(found.samples) < 14 * 5, "some were left out"
    twice = [fate for fate in read_fates(run).values() if fate.step and fate.attempt == 2]
    assert twice, "some groups were trained in their second attempt"
    rows = [row for row in read_lines(run.verdicts) if "attempt" in row]
    assert {"unavailable", "timeout"} <= {row["cause"] for row in rows}
    assert {(row["fence"], row["generation"]) for row in rows} == {(1, 0), (1, 1), (2, 0)}


def test_rewards_under_constraint_weights_are_replayed_with_the_lambda_of_their_time(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, {"safety": 1.0, "format": 0.5, "tone": 0.25}, {})
    constraint = {
        "weighs": "tone", "rate": {"principle": "safety", "below": 0.5}, "bound": 0.1, "eta": 1.0,
    }  # fmt: skip
    config = Config.model_validate(config.model_dump() | {"constraints": {"unsafe": constraint}})
    run = RunDirectory.create(config)
    with Ledger.open(run.ledger, "replay") as ledger:
        DriverOnDisk(run, config, ledger).train(until=5)
        DriverOnDisk(run, config, ledger, step=3).train(until=7)
    found = replay(run)
    assert (found.disagreements, found.gaps) == ([], [])
    weights = {sample.step: sample.weights["tone"] for sample in found.samples}
    assert weights[1] == pytest.approx(0.25 * 0.1)
    assert len(set(weights.values())) > 3, "lambda moved"
    rows = [row for row in read_lines(run.verdicts) if "attempt" in row]
    assert all(row["factors"].keys() == {"tone"} for row in rows)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Step 1 trained the group 0/0 after a retry: rewards 0.25 + 0.5 x 1 and 0.75 + 0.5 x 0."""
    config = config_of(tmp_path, {"safety": 1.0, "format": 0.5}, {})
    config = config.model_copy(
        update={"rollout": config.rollout.model_copy(update={"group_size": 2})}
    )
    run = RunDirectory.create(config)
    with Ledger.open(run.ledger, "replay") as ledger:
        ledger.apply(life(0, GroupState.TRAINED), ledger.raise_fence())
    mark = {
        "event": "principles", "fence": 1, "generation": 0,
        "routes": {"safety": {"safety": 1.0, "format": 0.5}}, "reward": {"combine": "additive"},
    }  # fmt: skip
    write_log(
        run,
        [
            mark,
            line("0/0/0", "safety", 0.25),
            {**line("0/0/1", "safety", None), "status": "invalid", "cause": "timeout"},
            line("0/0/0", "format", 1.0),
            line("0/0/1", "format", 0.0),
            line("0/0/1", "safety", 0.75, call=2),
        ],
    )
    order = TrainOrder(step=1, fence=1, groups=())
    write_batch(run.batches, order, [trained("0/0/0", 0.75), trained("0/0/1", 0.75)])
    return run


def line(sample_id: str, principle: str, score: float | None, call: int = 1) -> dict[str, Any]:
    return {
        "sample_id": sample_id, "principle": principle, "verifier": "v", "verifier_version": "1",
        "status": "ok", "score": score, "label": None, "evidence": "why", "cause": None,
        "retryable": False, "latency_ms": 1.0, "disagreement": None, "attempt": 1, "call": call,
        "route": "safety", "fence": 1, "generation": 0,
    }  # fmt: skip


def write_log(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    run.verdicts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(run: RunDirectory, *words: str) -> Result:
    return CliRunner().invoke(app, ["verdicts", str(run.path), "--replay", *words])


def test_a_run_that_was_not_touched_agrees(run: RunDirectory) -> None:
    result = ask(run)
    assert result.exit_code == 0, result.output
    assert "2 samples of 1 groups were replayed: 2 agree, 0 do not" in result.output
    assert ask(run, "--step", "1", "--group", "0/0").exit_code == 0


def test_a_verdict_that_was_tampered_with_is_named(run: RunDirectory) -> None:
    rows = read_lines(run.verdicts)
    assert (rows[5]["sample_id"], rows[5]["score"]) == ("0/0/1", 0.75)
    rows[5]["score"] = 0.5
    write_log(run, rows)
    result = ask(run)
    assert result.exit_code == ReplayError.exit_code == 7
    assert "0/0/1 in step 1: reward 0.75, by its verdicts 0.5: safety 0.5 x 1" in result.output
    assert "1 agree, 1 do not" in result.output
    assert "0/0/0 in step" not in result.output
    printed = ask(run, "--json")
    said = [json.loads(text) for text in printed.stdout.splitlines()]
    assert [(one["sample_id"], one["agrees"]) for one in said] == [
        ("0/0/0", True),
        ("0/0/1", False),
    ]
    assert said[1]["verdicts"]["safety"]["score"] == 0.5


def test_a_sample_that_was_trained_in_spite_of_its_verdict_is_named(run: RunDirectory) -> None:
    write_log(run, read_lines(run.verdicts)[:5])  # the retry that made it valid is gone
    (sample,) = replay(run).disagreements
    assert (sample.sample_id, sample.stored, sample.recomputed) == ("0/0/1", 0.75, None)


def test_a_sample_that_was_left_out_in_spite_of_its_verdicts_is_named(run: RunDirectory) -> None:
    write_batch(run.batches, TrainOrder(step=1, fence=1, groups=()), [trained("0/0/0", 0.75)])
    (sample,) = replay(run).disagreements
    assert (sample.sample_id, sample.stored, sample.recomputed) == ("0/0/1", None, 0.75)


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    ("place", "change", "reason"),
    [
        (1, without("attempt", "generation"), "does not say which attempt, route and panel"),
        (1, lambda row: {**row, "attempt": 2}, "has no verdict of safety on 0/0/0"),
        (1, lambda row: {**row, "generation": 1}, "more than one panel"),
        (1, lambda row: {**row, "score": 7.0}, "damaged: safety: an OK verdict needs a score"),
        (1, lambda row: {**row, "score": "high"}, "damaged"),
        (1, lambda row: {}, "has no verdict of safety on 0/0/0"),
        (0, lambda row: {}, "does not say what route 'safety' weighed in generation 0 of driver 1"),
        (0, without("reward"), "does not say what route 'safety' weighed"),
        (0, lambda row: {**row, "fence": [1]}, "does not say what route 'safety' weighed"),
        (0, lambda row: {**row, "reward": {"combine": "sum"}}, "damaged"),
        (0, lambda row: {**row, "routes": {"safety": {"safety": "x"}}}, "damaged"),
    ],
)
def test_what_cannot_be_replayed_has_a_reason(
    run: RunDirectory, place: int, change: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    rows = read_lines(run.verdicts)
    rows[place] = change(rows[place])
    write_log(run, rows)
    result = ask(run)
    assert result.exit_code == 7
    assert reason in result.output
    assert "groups 0/0" in result.output
    assert "0 agree, 0 do not; 1 groups cannot be replayed" in result.output


def test_a_run_of_before_says_so_for_all_its_samples(run: RunDirectory) -> None:
    names = ("attempt", "call", "route", "fence", "generation", "disagreement")
    write_log(run, [without(*names)(row) for row in read_lines(run.verdicts)[1:]])
    (gap,) = replay(run).gaps
    assert gap.samples == ("0/0/0", "0/0/1")
    run.verdicts.unlink()
    assert "no verdict of attempt 1" in replay(run).gaps[0].reason


def test_a_batch_is_believed_only_as_far_as_the_ledger_goes(run: RunDirectory) -> None:
    order = TrainOrder(step=1, fence=1, groups=())
    samples = [trained("0/0/0", 0.75), trained("0/0/1", 0.75)]
    write_batch(run.batches, order, [*samples, trained("0/7/0", 1.0)])
    (gap,) = replay(run).gaps
    assert (gap.key, gap.samples) == (GroupKey(0, 7), ("0/7/0",))
    assert "the ledger does not say that step 1 trained it" in gap.reason
    write_batch(run.batches, order, [*samples, samples[0]])
    assert "twice" in replay(run).gaps[0].reason
    path = run.batches / "step-1.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert "cannot be read" in replay(run).gaps[0].reason
    path.unlink()
    assert "is not there" in replay(run).gaps[0].reason


def test_nothing_to_replay_is_no_success(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match="no such step"):
        replay(run, step=9)
    assert ask(run, "--group", "0/9").exit_code == 2
    assert ask(run, "--principle", "safety").exit_code == 2
