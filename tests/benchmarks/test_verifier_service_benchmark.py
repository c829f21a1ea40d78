"""The benchmark runs, its clients get right answers, and its bars can fail."""

from __future__ import annotations

import pytest

from benchmarks.verifier_load import BODY_BYTES, hostile_bodies, make_body
from benchmarks.verifier_service import Plan, bars, measure
from cluster import wire

pytestmark = pytest.mark.process


def test_the_body_has_the_size_that_is_promised_and_the_hostile_ones_are_refused() -> None:
    assert abs(len(make_body()) - BODY_BYTES) < 64
    assert len(wire.unpack_requests(make_body())) == 1
    for body in hostile_bodies():
        try:
            wire.unpack_requests(body)
        except wire.WireError:
            continue
        raise AssertionError("a hostile body is read")


def test_a_round_of_everything_brings_every_figure() -> None:
    figures = measure(Plan(rounds=1, round_s=0.3, warm_up_s=0.1))
    assert figures["slow_connections"] == 1000
    assert figures["hostile_sent"] == figures["hostile_refused"] > 0
    assert set(bars(figures)) == {
        "plain throughput", "plain p99", "mtls throughput", "mtls p99", "p99 under attack",
        "hostile refused", "hostile rate",
    }  # fmt: skip
    poor = figures | {"mtls_ratio_per_s": 0.79, "plain_ratio_p99_ms": 2.1, "hostile_refused": 0}
    assert not any(bars(poor)[name] for name in ("mtls throughput", "plain p99", "hostile refused"))
