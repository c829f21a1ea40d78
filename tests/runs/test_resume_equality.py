"""Resume equality: a deterministic run that is killed and resumed is the run that nobody killed.

Losses, batches and weights bit for bit, on one rank; the books are sound, and a replay of every
step, over the seam too, gives what was recorded.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from .conftest import DETERMINISTIC, WHOLE_STEPS, cluster, finished, write_config
from .readings import assert_same_batch, metrics
from .test_resume import kill_when, losses, newest_checkpoint, resume

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(900)]


def steps_taken(run: Path) -> int:
    """The last step that ``steps.jsonl`` tells of."""
    path = run / "steps.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(line.startswith('{"kind": "step"') for line in lines)


def digests(run: Path) -> dict[int, set[str]]:
    """Version → digests under which it was published."""
    rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    found: dict[int, set[str]] = {}
    for row in rows:
        if row["kind"] == "version":
            found.setdefault(row["version"], set()).add(row["digest"])
    return found


def weight_hash(run: Path) -> str:
    """SHA-256 of the last checkpoint's weights, from its manifest."""
    manifest = json.loads((run / f"checkpoints/step-{WHOLE_STEPS}/manifest.json").read_text())
    return str(manifest["files"]["model.safetensors"])


@pytest.mark.parametrize(
    "split",
    [
        pytest.param(0, marks=pytest.mark.slow, id="before-the-first-checkpoint"),
        pytest.param(2, id="after-step-2"),
        pytest.param(5, marks=pytest.mark.slow, id="after-step-5"),
    ],
)
def test_a_run_killed_at_a_split_point_is_the_run_that_nobody_killed(
    tiny_model: Path, tmp_path: Path, whole_run: Path, split: int
) -> None:
    every = {"checkpoint": {"every_steps": 1 if split else 4}}
    config = write_config(tmp_path, tiny_model, "split", WHOLE_STEPS, DETERMINISTIC | every)
    run = kill_when(
        config,
        lambda run: newest_checkpoint(run) >= split if split else steps_taken(run) >= 1,
    )
    assert (newest_checkpoint(run) < 0) == (split == 0), "it was killed elsewhere"

    done = resume(run)

    assert done.returncode == 0, done.stdout + done.stderr
    rows, expected = metrics(run), metrics(whole_run)
    assert sorted(rows) == list(range(1, WHOLE_STEPS + 1))
    for step in rows:
        assert losses(rows[step]) == losses(expected[step])
        assert_same_batch(run, whole_run, step)
    assert digests(run) == digests(whole_run)
    assert weight_hash(run) == weight_hash(whole_run)
    books = cluster("ledger", str(run))
    assert books.returncode == 0, books.stdout + books.stderr
    again = cluster("replay", str(run), "--steps", f"1..{WHOLE_STEPS}", "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    report = json.loads(again.stdout)
    assert (report["is_exact"], report["start_step"]) == (True, 0)
    assert all(step["is_digest_compared"] for step in report["steps"])


def draws(run: Path) -> list[tuple[object, ...]]:
    """What each group asked, and why."""
    with closing(sqlite3.connect(run / "ledger.sqlite")) as ledger:
        return ledger.execute("SELECT * FROM draws ORDER BY epoch, ordinal").fetchall()


@pytest.mark.slow
def test_a_curriculum_that_follows_outcomes_asks_the_same_after_a_kill(
    tiny_model: Path, tmp_path: Path
) -> None:
    steps, shares = 6, {"normal": 0.5, "knowledge_rule": 0.5}
    keys = DETERMINISTIC | {
        "data": {"mix": shares},
        "curriculum": {"schedule": "adaptive", "decay": 0.8, "rehearsal": 0.2},
        "checkpoint": {"every_steps": 2},
    }
    whole = finished(write_config(tmp_path, tiny_model, "whole", steps, keys))
    config = write_config(tmp_path, tiny_model, "split", steps, keys)
    run = kill_when(config, lambda run: steps_taken(run) >= 3)
    done = resume(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert draws(run) == draws(whole)
    assert len({draw[3] for draw in draws(whole)}) > steps
    for step in metrics(whole):
        assert_same_batch(run, whole, step)
    books = cluster("ledger", str(run))
    assert books.returncode == 0, books.stdout + books.stderr
