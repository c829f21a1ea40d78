"""A verifier goes silent in the middle of a run, then fails on everything, then is well again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.runs.test_kills import DEADLINE_S, running, steps, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(600)]

NUM_STEPS = 60


@pytest.mark.parametrize("outage_s", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_no_step_is_trained_on_invalid_samples_and_the_run_goes_on_by_itself(
    tiny_config: Callable[..., Path], tmp_path: Path, outage_s: int
) -> None:
    switch = tmp_path / "switch"
    switch.write_text("ok")
    moody = {
        "verifier": "tests.runs.switched_verifier:Switched",
        "options": {"switch": str(switch)},
        "timeout_s": 1.0,
    }
    config = tiny_config(
        name="outage",
        steps=NUM_STEPS,
        overrides={
            "principles": {"moody": moody},
            "routes": {"normal": {"moody": 1.0}, "knowledge_rule": {"moody": 1.0}},
            "reward": {"breaker": {"window": 64, "min_verdicts": 16}},
            "checkpoint": {"every_steps": NUM_STEPS},
        },
    )
    run = config.parent / "runs" / "outage"
    with running(config) as process:

        def alerts(kind: str) -> list[str]:
            rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            return [row["text"] for row in rows if row.get("alert") == kind]

        wait_for(lambda: steps(run) >= 3 or process.poll() is not None, "the third step")
        switch.write_text("hang")
        wait_for(lambda: bool(alerts("pause")) or process.poll() is not None, "the pause")
        time.sleep(outage_s)
        switch.write_text("error")
        time.sleep(outage_s)
        halted_at = steps(run)
        time.sleep(1)
        assert steps(run) == halted_at < NUM_STEPS, "training went on in the outage"
        switch.write_text("ok")
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output.decode()[-3000:]
    assert steps(run) == NUM_STEPS
    assert any("INVALID(timeout)" in text for text in alerts("verifier"))
    statuses = [v["status"] for v in trained_verdicts(run)]
    assert len(statuses) == NUM_STEPS * 4 * 4
    assert set(statuses) == {"ok"}
    summary = json.loads((run / "summary.json").read_text())
    # Only what failed before the breaker had seen enough is lost.
    assert sum(summary["groups_dropped"].values()) <= 8, summary["groups_dropped"]


def trained_verdicts(run: Path) -> list[dict[str, str]]:
    """The verdicts that stand beside the trained batches."""
    found: list[dict[str, str]] = []
    for file in (run / "batches").glob("step-*.safetensors"):
        with safe_open(file, framework="np") as batch:
            for text in json.loads(batch.metadata()["audit"]):
                found += [v for v in json.loads(text) if v["principle"] == "moody"]
    return found
