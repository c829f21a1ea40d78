"""``python -m tests.chaos`` tells each fault, and fails if one was not survived."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import __main__ as command
from tests.chaos.outcome import Case, Report


def survived(report: Report) -> Iterator[Case]:
    yield Case("kill", "learner, idle", True, recovery_s=4.0)
    yield Case("kill", "learner, saving", True, recovery_s=7.0)
    report.resumes += 1


def broken(report: Report) -> Iterator[Case]:
    yield Case("disk", "full", True)
    report.findings.lost = 2
    report.findings.violations += ["0/1 was asked for, and has no end"]


def stuck(report: Report) -> Iterator[Case]:
    yield Case("outage", "hang", False, "waited 240 s for a pause")


@pytest.fixture(autouse=True)
def _classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    classes = {"survived": survived, "broken": broken, "stuck": stuck}
    monkeypatch.setattr(command, "CLASSES", classes)


def test_what_is_survived_ends_well_and_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--only", "survived", "--seed", "7"]) == 0
    told = capsys.readouterr().out
    figures = json.loads(told.splitlines()[-1])
    assert figures["holds"] is True
    assert (figures["faults"], figures["resumes"], figures["seed"]) == (2, 1, 7)
    assert figures["recovery_s"] == {"p50": 5.5, "p99": 7.0}
    assert "kill              2 tried    2 survived" in told


@pytest.mark.parametrize("name", ["broken", "stuck"])
def test_a_broken_promise_and_a_run_that_hangs_fail_the_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--only", "survived", name]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["holds"] is False
