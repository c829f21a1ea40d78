"""Nothing of the hostile corpus is scored or believed, and nothing of it leaves a trace."""

from __future__ import annotations

import psutil
import pytest

from tests.abuse import wire

pytestmark = pytest.mark.process

MAX_GROWTH_BYTES = 48 * 1024 * 1024


def test_the_corpus_is_large_and_every_item_is_another() -> None:
    bodies = [raw for _, raw in wire.requests()]
    assert len(set(bodies)) == len(bodies) >= 300
    assert len(list(wire.answers())) >= 100
    assert len({kind for kind, _ in (*wire.requests(), *wire.answers())}) >= 30


def test_every_item_is_refused_and_honest_calls_go_on_being_served() -> None:
    outcomes = wire.run()
    assert [outcome for outcome in outcomes if not outcome.is_contained] == []
    process = psutil.Process()
    before = process.memory_info().rss
    wire.run()
    assert process.memory_info().rss - before < MAX_GROWTH_BYTES
