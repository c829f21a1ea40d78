"""Commit points: a closed list, nothing without a plan, a sudden end with one."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeladder import commit_points
from safeladder.commit_points import LOG_VARIABLE, POINTS, VARIABLE, arm, reached, reached_for
from safeladder.errors import ConfigError

ROOT = Path(__file__).parents[2]
ROOMS = ("actors", "learners", "cluster")
SCRIPT = """
import sys
from safeladder.commit_points import arm, reached
arm(sys.argv[1], sys.argv[2])
for turn in range(3):
    reached("fence.read", turn)
    reached("ray.started", turn)
"""


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    arm(None, None)


def points_in_the_code() -> set[str]:
    """Literal arguments of ``reached``, and the kinds of calls and states joined with the places
    of ``reached_for``."""
    found: set[str] = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "reached":
                found.add(ast.literal_eval(node.args[0]))
            elif node.func.id == "reached_for":
                place = ast.literal_eval(node.args[1])
                kinds = commit_points._STATES if "ledger" in path.name else commit_points._CALLS
                found |= {f"{kind}.{place}" for kind in kinds}
    return found


def test_the_list_is_what_stands_in_the_code() -> None:
    assert points_in_the_code() == set(POINTS)
    assert len(POINTS) >= 25


def test_nothing_happens_without_a_plan() -> None:
    reached("fence.read")
    reached_for(["train", "status"], "asked")
    reached("no point at all")  # not even a look at the list


def test_a_plan_ends_the_process_the_nth_time_and_the_log_says_how_it_came_there(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "ray.started:2", str(log)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["point"], row["detail"]) for row in rows] == [
        ("fence.read", "0"),
        ("ray.started", "0"),
        ("fence.read", "1"),
        ("ray.started", "1"),
    ]


def test_kinds_without_a_point_are_passed_over(tmp_path: Path) -> None:
    arm(None, str(tmp_path / "log"))
    reached_for(["status", "train", "train"], "asked", "learner")
    (row,) = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert (row["point"], row["detail"]) == ("train.asked", "learner")


@pytest.mark.parametrize("order", ["fence", "fence.read:x", "fence.read:1:pause", ""])
def test_a_plan_that_cannot_be_carried_out_is_refused(order: str) -> None:
    with pytest.raises(ConfigError, match=VARIABLE):
        arm(order, None)


def test_the_variables_have_the_names_that_the_docs_give_them() -> None:
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert VARIABLE in text
    assert LOG_VARIABLE in text
