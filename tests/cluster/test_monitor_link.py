"""What the driver learns from its monitor, and what it sends again: the fleet is scripted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cluster import monitor_link
from cluster.fleet import Lost, Reply
from cluster.monitor_link import NOTICES_EVERY_S, MonitorLink
from cluster.run_directory import RunDirectory
from cluster.telemetry import Telemetry
from cluster.terminal import Terminal

from .coordinator_play import make_config
from .scripted_fleet import ScriptedFleet

FELL_BACK = "W&B online does not start (no route to host); going on offline"


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    fleet = ScriptedFleet("monitor-0")
    monkeypatch.setattr(monitor_link, "Fleet", lambda *_, **__: fleet)
    return fleet


@pytest.fixture
def link(monitor: ScriptedFleet, tmp_path: Path) -> MonitorLink:
    return MonitorLink(make_config(), tmp_path, {})


def tell(monitor: ScriptedFleet, *notices: str) -> None:
    """The monitor answers a look."""
    monitor.events.append(Reply(actor="monitor-0", context="notices", value=list(notices)))


def test_a_notice_is_asked_for_now_and_then_and_told_once(
    link: MonitorLink, monitor: ScriptedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1e6
    monkeypatch.setattr(monitor_link.time, "monotonic", lambda: now_s)
    link.pump()
    assert [call.method for call in monitor.take()] == ["notices"]
    tell(monitor, FELL_BACK)
    link.pump()
    assert monitor.take() == [], "it was asked a moment ago"
    assert link.take_notices() == [FELL_BACK]
    assert link.take_notices() == []
    now_s += NOTICES_EVERY_S
    link.pump()
    assert [call.method for call in monitor.take()] == ["notices"]


def test_a_fallback_is_told_to_the_user(
    link: MonitorLink, monitor: ScriptedFleet, tmp_path: Path
) -> None:
    stream = io.StringIO()
    directory = RunDirectory(tmp_path)
    telemetry = Telemetry(make_config(), directory, link, Terminal(stream, 3), pid=1, fence=1)
    link.pump()
    tell(monitor, FELL_BACK)
    link.pump()
    telemetry.tell_notices()
    assert f"! {FELL_BACK}" in stream.getvalue()


def test_rows_of_a_dead_monitor_are_sent_again_and_looks_are_not(
    link: MonitorLink, monitor: ScriptedFleet
) -> None:
    link.send("alert", kind="a", text="b")
    sent: list[Any] = monitor.take()
    assert [call.method for call in sent] == ["notices", "alert"]
    monitor.ready = []
    contexts = tuple(call.context for call in sent)
    monitor.events.append(Lost(actor="monitor-0", reason="kill -9", contexts=contexts))
    link.pump()
    monitor.ready = ["monitor-1"]
    link.pump()
    assert [call.method for call in monitor.take()] == ["alert"]
