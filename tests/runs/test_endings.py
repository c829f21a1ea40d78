"""A run in spite of verifiers that fail, and the two ends that are not its own: a principle whose
policy says ``fail``, and SIGTERM."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.run_directory import RunDirectory, Status

from .leftovers import Command, command
from .readings import batch, metrics, trained_groups

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

Write = Callable[..., Path]
DEADLINE_S = 240.0
FAULTY = "tests.runs.faulty:Faulty"


def status_of(run: Path) -> Status:
    status = RunDirectory(run).status()
    assert status is not None
    return status


def shared_memory() -> set[str]:
    """Names of DeepSpeed's segments; the system keeps one until somebody removes it."""
    return {path.name for path in Path("/dev/shm").glob("deepspeed*")}


def wait_for_step(run: Path, step: int, driver: Command) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not (run / "metrics.jsonl").exists() or max(metrics(run), default=0) < step:
        assert driver.process.poll() is None, driver.finish(1)
        assert time.monotonic() < deadline, f"no step {step} within {DEADLINE_S} s"
        time.sleep(0.1)


def test_verifiers_that_raise_hang_or_leave_the_range_cost_their_samples_alone(
    tiny_config: Write,
) -> None:
    config = tiny_config(
        name="faults",
        steps=3,
        overrides={
            "principles": {
                "normal": {
                    "verifier": FAULTY,
                    "options": {"fault": "raises", "every": 4, "indexes": [1]},
                    "on_invalid": "drop_sample",
                },
                "rule": {
                    "verifier": FAULTY,
                    "options": {"fault": "hangs", "every": 4, "ordinals": [2]},
                    "timeout_s": 1.0,
                    "on_invalid": "retry",
                    "max_retries": 1,
                },
                "stop": {
                    "verifier": FAULTY,
                    "options": {"fault": "out_of_range", "every": 4, "ordinals": [3]},
                    "on_invalid": "drop_group",
                },
            },
            "routes": {"normal": {"rule": 1.0}, "knowledge_rule": {"normal": 1.0}},
            "reward": {"breaker": {"max_invalid_share": 1.0}},  # a quarter is wanted here
        },
    )
    before = shared_memory()
    with command("train", str(config)) as driver:
        code, out, err = driver.finish(DEADLINE_S)
        assert code == 0, out + err
        assert driver.left() == []
    assert shared_memory() <= before, "memory that no process holds any more"
    run = config.parent / "runs" / "faults"
    lines = map(json.loads, (run / "verdicts.jsonl").read_text().splitlines())
    invalid = [v for v in lines if v.get("status") == "invalid"]
    assert {(v["principle"], v["cause"]) for v in invalid} == {
        ("normal", "error"), ("rule", "timeout"), ("stop", "out_of_range"),
    }  # fmt: skip
    assert {v["score"] for v in invalid} == {None}
    trained = trained_groups(run)
    assert len(trained) == 3 * 4
    assert {int(group.partition("/")[2]) % 4 for group in trained} == {0, 1}
    siblings = Counter(
        int(sample.rpartition("/")[2]) for step in (1, 2, 3) for sample in batch(run, step)[1]
    )
    assert siblings == {0: 12, 2: 12, 3: 12}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["groups_dropped"].keys() == {"invalid"}
    assert status_of(run).state == "finished"


def test_a_principle_whose_policy_is_fail_ends_the_run_with_4(tiny_config: Write) -> None:
    config = tiny_config(
        name="fail",
        steps=50,
        overrides={
            "principles": {
                "stop": {
                    "verifier": FAULTY,
                    "options": {"fault": "raises", "every": 1000, "ordinals": [5]},
                    "on_invalid": "fail",
                }
            }
        },
    )
    with command("train", str(config)) as driver:
        code, out, err = driver.finish(DEADLINE_S)
        assert code == 4, out + err
        assert "Traceback" not in err
        assert "stop: INVALID(error)" in err
        assert "the verifier stumbles" in err
        assert driver.left() == []
    status = status_of(config.parent / "runs" / "fail")
    assert (status.state, status.exit_code) == ("failed", 4)
    assert "the verifier stumbles" in str(status.reason)


def test_sigterm_ends_a_run_with_75_and_nothing_is_left(tiny_config: Write) -> None:
    config = tiny_config(
        name="preempted",
        steps=1000,
        overrides={"principles": {"stop": {"service": {"spawn": True}}}},
    )
    run = config.parent / "runs" / "preempted"
    with command("train", str(config)) as driver:
        wait_for_step(run, 2, driver)
        driver.terminate()
        code, out, err = driver.finish(60)
        assert code == 75, out + err
        assert "Traceback" not in err
        assert err.splitlines()[-1] == (
            "safeladder: told to stop by SIGTERM; go on by `safeladder resume`"
        )
        assert driver.left() == []
    status = status_of(run)
    assert (status.state, status.exit_code) == ("failed", 75)
    assert status.step >= 2
