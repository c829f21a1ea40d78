"""Held-out probes in whole runs: an early end, a pause, a rollback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger

from .conftest import cluster, train
from .readings import metrics

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40


def probed(tiny_config: Callable[..., Path], name: str, **sections: Any) -> Path:
    """A run with a probe that ``stop`` judges, asked every two steps."""
    config = tiny_config(name=name, steps=STEPS, overrides={"checkpoint": {"keep": 9}, **sections})
    tree = json.loads(config.read_text())
    rows = [{"id": str(i), "prompt": f"say {i}", "route": "normal"} for i in range(4)]
    held = config.parent / "probe.jsonl"
    held.write_text("\n".join(map(json.dumps, rows)) + "\n")
    sets = {"stops": {"data": [str(held)], "principle": "stop"}}
    tree["probes"] = {"every_steps": 2, "sets": sets}
    config.write_text(json.dumps(tree))
    return config


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_a_run_ends_at_its_target_as_at_its_last_step(tiny_config: Callable[..., Path]) -> None:
    config = probed(
        tiny_config, "target", exit={"plateau": {"probe": "stops", "patience": 1, "min_delta": 1.0}}
    )
    done = train(config)
    run = config.parent / "runs" / "target"
    assert done.returncode == 0, done.stdout + done.stderr
    summary, status = read(run, "summary.json"), read(run, "status.json")
    assert summary["exit"]["reason"] == "plateau"
    assert 2 <= summary["steps"] < STEPS
    assert (status["state"], status["step"]) == ("finished", summary["steps"])
    assert (run / "checkpoints" / f"step-{summary['steps']}").is_dir()
    assert len(metrics(run)) == summary["steps"]
    with Ledger.open(run / "ledger.sqlite", "target") as ledger:
        assert ledger.audit(groups_per_step=4, max_staleness=1) == []


def test_a_tripwire_pauses_a_run_and_a_resume_goes_on(tiny_config: Callable[..., Path]) -> None:
    wire = {"wire": {"probe": "stops", "at_least": 1.0, "action": "pause"}}
    config = probed(tiny_config, "pause", tripwires=wire)
    done = train(config)
    run = config.parent / "runs" / "pause"
    assert done.returncode == 5
    assert "tripwire wire: probe stops is at" in read(run, "status.json")["reason"]
    first = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    again = cluster("resume", str(run))
    assert again.returncode == 5
    second = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    assert second > first, "the resumed run went on until its next round"
