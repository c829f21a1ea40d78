"""Figures of the rollout fleets, from what was played to them."""

from __future__ import annotations

import pytest

from cluster.fleet_usage import FleetUsage
from safeladder.engine_profile import EngineLoad
from safeladder.records import GroupHeader, GroupKey

from .scripted_fleet import loaded


def group(engine: str, tokens: int, min_version: int) -> GroupHeader:
    return GroupHeader(
        key=GroupKey(0, 0), attempt=1, fence=1, engine=engine, lengths=(tokens, tokens),
        min_version=min_version, max_version=min_version, sha256="", generate_s=1.0,
    )  # fmt: skip


def beat(usage: FleetUsage, engine: str, now_s: float, busy_s: float, kv: float = 0.5) -> None:
    load = EngineLoad(kv_share=kv, running=1, waiting=0, preemptions=0)
    usage.beat(engine, loaded(0, busy_s=busy_s, load=load), now_s)


def test_each_fleet_has_its_own_figures() -> None:
    usage = FleetUsage()
    usage.generated(group("rollout-h100-0", 100, 3), version=4)
    usage.generated(group("rollout-h100-1", 100, 4), version=4)
    usage.generated(group("rollout-l40s-0", 10, 2), version=4)
    row = usage.row(10.0)
    assert row["fleet/rollout-h100/tokens_per_s"] == 40.0
    assert row["fleet/rollout-h100/groups"] == 2.0
    assert row["fleet/rollout-h100/engines"] == 2.0
    assert row["fleet/rollout-h100/staleness"] == 0.5
    assert row["fleet/rollout-l40s/tokens_per_s"] == 2.0
    assert row["fleet/rollout-l40s/staleness"] == 2.0
    assert "fleet/rollout-l40s/busy" not in row, "nobody has told"


def test_the_busy_share_is_that_of_engine_time_between_heartbeats() -> None:
    usage = FleetUsage()
    for now_s, busy_s in ((0.0, 0.0), (10.0, 9.0)):
        beat(usage, "rollout-a-0", now_s, busy_s, kv=0.9)
        beat(usage, "rollout-a-1", now_s, busy_s / 3, kv=0.5)
    row = usage.row(10.0)
    assert row["fleet/rollout-a/busy"] == pytest.approx((9 + 3) / 20)
    assert row["fleet/rollout-a/kv"] == pytest.approx(0.7)
    beat(usage, "rollout-a-0", 20.0, 9.0)
    assert usage.row(10.0)["fleet/rollout-a/busy"] == 0.0


def test_an_engine_that_started_again_is_never_busier_than_time() -> None:
    usage = FleetUsage()
    beat(usage, "rollout-a-0", 0.0, 0.0)
    beat(usage, "rollout-a-0", 2.0, 50.0)
    assert usage.row(2.0)["fleet/rollout-a/busy"] == 1.0


def test_the_summary_is_over_all_rows() -> None:
    usage = FleetUsage()
    for step in range(4):
        usage.generated(group("rollout-0", 50, step), version=step)
        usage.row(5.0)
    assert usage.summary() == {
        "rollout": {"engines": 1.0, "groups": 4.0, "tokens_per_s": 20.0, "staleness": 0.0}
    }
