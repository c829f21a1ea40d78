"""No judge attack becomes a number, and no answer speaks outside its fence."""

from __future__ import annotations

import asyncio

import pytest

from safeladder.records import VerdictStatus
from tests.abuse.judges import ask, run

pytestmark = pytest.mark.process


def test_every_attack_on_judges_is_contained() -> None:
    outcomes = run()
    assert sum(outcome.tried for outcome in outcomes) >= 100
    assert [o for o in outcomes if not o.is_contained] == []


def test_an_honest_reply_is_still_read() -> None:
    verdict = asyncio.run(ask("safety", "Unsafe"))
    assert (verdict.status, verdict.score) == (VerdictStatus.OK, 0.0)
