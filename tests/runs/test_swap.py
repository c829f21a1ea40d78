"""Principles are swapped under a run that trains: no sample lost, none judged by a mixture."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from tests.runs.conftest import cluster
from tests.runs.test_kills import DEADLINE_S, running, steps, trained_groups, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(400)]

NUM_STEPS = 200
GROUPS_PER_STEP = 4


def test_a_verifier_is_swapped_and_another_added_while_the_run_trains(
    tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = tiny_config(
        name="swap", steps=NUM_STEPS, overrides={"checkpoint": {"every_steps": NUM_STEPS}}
    )
    run = config.parent / "runs" / "swap"
    row = {"prompt": "Name a cat.", "response": "Tom.", "route": "normal"}
    lies = overlay(tmp_path, "lies", [{**row, "expect": {"max": 0.1}}])
    good = overlay(tmp_path, "good", [{**row, "expect": {"min": 0.9}}])
    with running(config) as process:
        wait_for(lambda: steps(run) >= 3 or process.poll() is not None, "the third step")
        refused = cluster("principles", str(run), "--config", str(lies))
        assert refused.returncode == 4, refused.stderr
        assert "nothing changed" in refused.stderr
        assert "wrong on 1 of 1 canaries" in refused.stderr
        accepted = cluster("principles", str(run), "--config", str(good))
        assert accepted.returncode == 0, accepted.stderr
        assert "generation 1" in accepted.stdout
        swapped_at = steps(run)
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output.decode()[-3000:]
    assert swapped_at < NUM_STEPS - 10, "the swap came too late to be seen"

    panels = panels_by_group(run)
    assert len(set(panels.values())) == 2, "one panel before, one after"
    before = min(panels.values(), key=len)
    after = max(panels.values(), key=len)
    assert {principle for principle, _ in after} - {principle for principle, _ in before} == {
        "brief"
    }
    assert dict(before)["stop"] == dict(after)["stop"], "what did not change was not touched"
    assert dict(before)["normal"] != dict(after)["normal"]
    trained = trained_groups(run)
    assert set(trained.values()) == {1}
    assert len(trained) == NUM_STEPS * GROUPS_PER_STEP
    states = sqlite3.connect(run / "ledger.sqlite").execute("SELECT DISTINCT state FROM groups")
    assert {state for (state,) in states} <= {"trained", "dropped"}
    lines = [json.loads(line) for line in (run / "verdicts.jsonl").read_text().splitlines()]
    marks = [line for line in lines if line.get("event") == "principles"]
    assert [(mark["generation"], sorted(mark["verifiers"])) for mark in marks] == [
        (0, ["normal", "rule", "stop"]),
        (1, ["brief", "normal", "rule", "stop"]),
    ]
    assert yaml.safe_load((run / "config.yaml").read_text())["principles"]["brief"]
    replayed = cluster("verdicts", str(run), "--replay")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert f"samples of {len(trained)} groups were replayed" in replayed.stdout
    assert "0 do not; 0 groups cannot be replayed" in replayed.stdout


def overlay(folder: Path, name: str, canaries: list[dict[str, object]]) -> Path:
    """Another version of ``normal``, with canaries, and a further principle for its route."""
    rows = folder / f"{name}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in canaries))
    tree = {
        "principles": {
            "normal": {"options": {"topic_words": 9}, "canaries": str(rows)},
            "brief": {"verifier": "rewards.format:StopWithinLimit"},
        },
        "routes": {"normal": {"normal": 2.0, "brief": 0.1}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def panels_by_group(run: Path) -> dict[str, frozenset[tuple[str, str]]]:
    """Group of the route that changed → the (principle, verifier version) pairs that judged it."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for file in (run / "batches").glob("step-*.safetensors"):
        with safe_open(file, framework="np") as batch:
            for text in json.loads(batch.metadata()["audit"]):
                for verdict in json.loads(text):
                    group = verdict["sample_id"].rpartition("/")[0]
                    found[group].add((verdict["principle"], verdict["verifier_version"]))
    normal = {key: pairs for key, pairs in found.items() if "normal" in dict(pairs)}
    return {key: frozenset(pairs) for key, pairs in normal.items()}
