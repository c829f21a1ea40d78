"""The runner of all corpora: it counts what got through, and fails for it."""

from __future__ import annotations

import pytest

from tests.abuse.__main__ import CORPORA, main
from tests.abuse.outcome import Outcome, tally

pytestmark = pytest.mark.process


def test_what_gets_through_fails_the_run_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    corpora = {
        "tight": lambda: tally([("a", True), ("a", True)]),
        "leaky": lambda: [Outcome("b", 3, 2, "BREACH: out")],
    }
    assert main(["tight"], corpora) == 0
    assert "total: 2 tried, 2 refused or contained, 0 not" in capsys.readouterr().out
    assert main([], corpora) == 1
    told = capsys.readouterr().out
    assert "NOT CONTAINED BREACH: out" in told
    assert "total: 5 tried, 4 refused or contained, 1 not" in told
    assert main(["nothing"], corpora) == 2
    assert "tight, leaky" in capsys.readouterr().err


def test_all_four_corpora_are_run() -> None:
    assert list(CORPORA) == ["wire", "auth", "judges", "sandbox"]
