"""No commit point is dead: a tiny run comes by every one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeladder.commit_points import POINTS
from tests.chaos import checker
from tests.chaos.driven import driven
from tests.tiny_model import save_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(400)]


def test_a_run_comes_by_every_commit_point_and_its_account_is_sound(tmp_path: Path) -> None:
    with driven(tmp_path, save_tiny_model(tmp_path / "model"), "points", steps=6) as run:
        run.train()
        assert run.exit_code() == 0, run.output()
        assert {row["point"] for row in checker.points(run.witness)} == set(POINTS)
        assert run.check() == checker.Findings()
