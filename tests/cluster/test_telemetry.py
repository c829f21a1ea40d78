"""What a step's row says of the verdicts that came before it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from cluster.protocol import (
    GrantLease,
    GroupGenerated,
    Score,
    StepCommitted,
    Train,
    VerdictsReady,
    VerdictsTaken,
)
from cluster.run_directory import RunDirectory
from cluster.telemetry import Telemetry
from cluster.terminal import Terminal
from safeladder.records import (
    GroupKey,
    InvalidCause,
    Lease,
    StepReport,
    Verdict,
    VerdictStatus,
)
from tests.cluster.coordinator_play import Play, header, make_config
from tests.cluster.run_on_disk import payload_of


class Link:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, method: str, **arguments: Any) -> None:
        self.sent.append((method, arguments))

    def pump(self) -> None:
        pass

    def take_notices(self) -> list[str]:
        return []

    def rows(self) -> list[dict[str, float]]:
        return [arguments["values"] for method, arguments in self.sent if method == "record"]


def judged(key: GroupKey, index: int, score: float | None, apart: float | None) -> Verdict:
    is_valid = score is not None
    return Verdict(
        sample_id=f"{key}/{index}", principle="safety", verifier="quorum", verifier_version="1",
        status=VerdictStatus.OK if is_valid else VerdictStatus.INVALID, score=score,
        cause=None if is_valid else InvalidCause.ABSTAIN, disagreement=apart,
    )  # fmt: skip


def test_disagreement_is_the_mean_over_all_verdicts_since_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = {"verifier": "a:B", "on_invalid": "drop_group"}
    config = make_config(principles={"safety": policy}, schedule={"groups_per_step": 1})
    run = RunDirectory(tmp_path)
    link, play = Link(), Play(config)
    terminal = Terminal(io.StringIO(), 3)
    telemetry = Telemetry(config, run, link, terminal, pid=1, fence=7)  # type: ignore[arg-type]
    said: dict[int, tuple[tuple[float | None, float | None], ...]] = {
        0: ((0.5, 0.4), (None, 0.9)),  # too far apart: dropped, and measured all the same
        1: ((0.0, 0.1), (1.0, 0.2)),
        2: ((0.0, None), (1.0, None)),
    }
    leases: dict[str, Lease] = {}
    monkeypatch.setattr("cluster.telemetry.fetch", lambda handle, _: payload_of(leases[handle]))
    while len(link.rows()) < 2:
        for grant in play.take(GrantLease):
            leases[play.generate(grant, play.coordinator.status().version)] = grant.lease
        for call in play.take(Score):
            pairs = said.get(call.key.ordinal, said[2])
            answer = tuple(judged(call.key, i, *pair) for i, pair in enumerate(pairs))
            play.send(VerdictsReady(call.key, call.attempt, call.fleet, call.call, answer))
        for taken in play.take(VerdictsTaken):
            telemetry.notice(taken)
        for train in play.take(Train):
            step = train.order.step
            report = StepReport(step=step, version=step, metrics={}, seconds=1.0)
            telemetry.trained(train.order, report, play.coordinator)
            assert len(link.rows()) == step - 1, "told before the ledger has it"
            telemetry.turn(play.coordinator)
            play.send(StepCommitted(report))
            play.publish(step, "rollout-0")
    first, second = link.rows()
    assert first["disagreement/safety"] == pytest.approx((0.4 + 0.9 + 0.1 + 0.2) / 4)
    assert first["invalid/safety/abstain"] == 1
    assert "disagreement/safety" not in second, "one judge alone does not disagree"
    (sample,) = next(arguments["rows"] for method, arguments in link.sent if method == "samples")
    assert sample["disagreement"] == {"safety": 0.1}
    assert sample["version"] == 1, "of the oldest token"
    rows = [
        row for method, arguments in link.sent if method == "verdicts" for row in arguments["rows"]
    ]
    assert [(row["sample_id"], row["disagreement"]) for row in rows[:2]] == [
        ("0/0/0", 0.4),
        ("0/0/1", 0.9),
    ]
    place = {"attempt": 1, "call": 1, "route": "safety", "fence": 7, "generation": 0}
    assert all(row.items() >= place.items() for row in rows)


def test_tokens_of_stopped_samples_are_told_step_by_step(tmp_path: Path) -> None:
    config = make_config(rollout={"oversample": 2}, schedule={"groups_per_step": 1})
    link, play = Link(), Play(config)
    run, terminal = RunDirectory(tmp_path), Terminal(io.StringIO(), 3)
    telemetry = Telemetry(config, run, link, terminal, pid=1, fence=7)  # type: ignore[arg-type]
    for step in (1, 2):
        for grant in play.take(GrantLease):
            made = header(grant.lease, grant.engine, step - 1, size=2)
            made = replace(made, stopped=(10, 20) if step == 1 else ())
            telemetry.generated(made)
            play.send(GroupGenerated(made, f"{grant.lease.key}"))
        play.score_all()
        (train,) = play.take(Train)
        report = StepReport(step=step, version=step, metrics={}, seconds=1.0)
        telemetry.trained(train.order, report, play.coordinator)
        with patch("cluster.telemetry.fetch", side_effect=KeyError):
            telemetry.turn(play.coordinator)
        play.send(StepCommitted(report))
        play.publish(step, "rollout-0")
    first, second = link.rows()
    num_groups = 2  # at a bound of 1 two are leased at once
    assert first["rollout/stopped_tokens"] == 30 * num_groups
    assert first["rollout/stopped_length"] == 15
    assert (second["rollout/stopped_tokens"], second["rollout/stopped_length"]) == (0, 0)
    assert (first["rollout/continued"], first["rollout/begun_anew"]) == (0, 0)


def test_the_share_of_groups_without_a_gradient_is_told_step_by_step(tmp_path: Path) -> None:
    config = make_config(schedule={"groups_per_step": 2, "max_staleness": 0})
    link, play = Link(), Play(config)
    run, terminal = RunDirectory(tmp_path), Terminal(io.StringIO(), 3)
    telemetry = Telemetry(config, run, link, terminal, pid=1, fence=7)  # type: ignore[arg-type]
    with patch("cluster.telemetry.fetch", side_effect=KeyError):
        telemetry.turn(play.coordinator)
        for step, equal in ((1, 3), (2, 0)):
            while not (trains := play.take(Train)):
                for grant in play.take(GrantLease):
                    play.generate(grant, step - 1)
                for call in play.take(Score):
                    scores = [0.5] * len(call.indexes) if equal > 0 else [0.0, 1.0]
                    play.judge(call, scores)
                    equal -= 1
            report = StepReport(step=step, version=step, metrics={}, seconds=1.0)
            telemetry.trained(trains[0].order, report, play.coordinator)
            telemetry.turn(play.coordinator)
            play.send(StepCommitted(report))
            play.publish(step, "rollout-0")
    assert [row["rollout/filtered_share"] for row in link.rows()] == [3 / 5, 0]
    assert [row["dropped/filtered"] for row in link.rows()] == [3, 3]
