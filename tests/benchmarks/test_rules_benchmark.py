"""The benchmark of the rules runs, and measures what it says."""

from __future__ import annotations

import json
from random import Random

import pytest

from benchmarks import rules


def test_the_short_form_ends_with_the_figures_and_the_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rules", "--short"])
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    code = rules.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["name"], result["unit"], result["bar"]) == ("rules", "checks/s/core", 2000)
    assert result["figure"] == max(result["repeats"]) > 0
    assert code == (0 if result["holds"] else 1)


def test_the_workload_has_every_type_but_those_that_detect_a_language() -> None:
    rng = Random(0)
    assert len(rules.checks_of(rules.PLAIN_TYPES, rng)) == 22
    answers = rules.make_answers(60, rng)
    assert min(map(len, answers)) >= 50
    assert max(map(len, answers)) > 1500
    assert any("\n* " in answer for answer in answers)
