"""Constraint weights in a run: in force for whole groups, moved by steps, kept by the ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.ledger import Ledger
from cluster.protocol import Fail, GrantLease, Score, Train, VerdictsTaken
from safeladder.config import Config
from tests.cluster.coordinator_play import Play, make_config

UNSAFE = {"weighs": "tone", "rate": {"principle": "safety", "below": 0.5}, "bound": 0.1}


def config_with(**changes: Any) -> Config:
    judge = {"verifier": "a:B"}
    return make_config(
        principles={"safety": judge, "tone": judge},
        routes={"safety": {"safety": 1.0, "tone": 2.0}},
        schedule={"groups_per_step": 1, "max_staleness": 0},
        constraints={"unsafe": {**UNSAFE, **changes}},
    )


def judge(play: Play, safety: list[float], tone: list[float]) -> None:
    for call in play.take(Score):
        play.judge(call, safety if call.principle == "safety" else tone)


def train(play: Play, safety: list[float]) -> Train:
    (grant,) = play.take(GrantLease)
    play.generate(grant, version=play.coordinator.status().version)
    judge(play, safety, [0.0, 1.0])
    order = play.commit()
    play.publish(order.order.step, "rollout-0")
    return order


def test_a_group_earns_by_the_lambda_in_force_and_the_next_by_the_next() -> None:
    play = Play(config_with())
    first = train(play, [0.0, 1.0])
    assert first.order.groups[0].rewards == pytest.approx((0.0, 1.0 + 2.0 * 0.1))
    risen = 0.1 * math.exp(0.2 * (0.5 - 0.1))
    assert play.coordinator.constraints.metrics == {
        "constraint/unsafe/lambda": risen, "constraint/unsafe/rate": 0.5,
    }  # fmt: skip
    second = train(play, [1.0, 1.0])
    assert second.order.groups[0].rewards == pytest.approx((1.0, 1.0 + 2.0 * risen))
    assert {tuple(t.factors.items()) for t in play.take(VerdictsTaken)} == {
        (("tone", 0.1),), (("tone", risen),),
    }  # fmt: skip


def test_groups_that_are_filtered_count_as_well() -> None:
    play = Play(config_with())
    (grant,) = play.take(GrantLease)
    play.generate(grant)
    judge(play, [0.0, 0.0], [1.0, 1.0])  # all siblings earn the same: dropped
    assert play.dropped == {"filtered": 1}
    train(play, [1.0, 1.0])
    assert play.coordinator.constraints.metrics["constraint/unsafe/rate"] == 0.5


def test_a_run_that_is_resumed_goes_on_with_the_lambda_of_its_checkpoint(tmp_path: Path) -> None:
    scores = [[0.0, 1.0], [0.0, 0.4], [1.0, 1.0]]

    def weights_after(ledger: Ledger, first: int, step: int, until: int) -> list[float]:
        fence = ledger.raise_fence(step)
        play = Play(config_with(), fence=fence, restored=ledger.snapshot())
        if step:
            play.publish(step, "rollout-0")
        found = []
        for number in range(first, until + 1):
            train(play, scores[number - 1])
            ledger.apply(play.transitions, fence, play.coordinator.constraints.drain())
            play.transitions.clear()
            found.append(play.coordinator.constraints.factors["tone"])
        return found

    with Ledger.open(tmp_path / "ledger.sqlite", "r") as ledger:
        whole = weights_after(ledger, 1, 0, 3)
        assert len(set(whole)) == 3
        for step in (2, 1):
            assert weights_after(ledger, step + 1, step, 3) == whole[step:]
        assert weights_after(ledger, 1, 0, 3) == whole, "from the start"


def test_the_state_of_a_step_is_stored_with_its_order() -> None:
    """A driver that dies between step and row: the checkpoint may be there already."""
    with Ledger.open(None, "r") as ledger:
        fence = ledger.raise_fence(0)
        play = Play(config_with(), fence=fence)
        (grant,) = play.take(GrantLease)
        play.generate(grant)
        judge(play, [0.0, 1.0], [0.0, 1.0])
        ledger.apply(play.transitions, fence, play.coordinator.constraints.drain())
        assert play.take(Train), "ordered, and never answered"
        ledger.raise_fence(1)
        again = Play(config_with(), fence=2, restored=ledger.snapshot())
    expected = 0.1 * math.exp(0.2 * (0.5 - 0.1))
    assert again.coordinator.constraints.factors["tone"] == expected


def test_a_lambda_that_diverges_ends_the_run() -> None:
    play = Play(config_with(rate={"token_limit": 1}, eta=1e308))
    (grant,) = play.take(GrantLease)
    play.generate(grant)
    judge(play, [0.0, 1.0], [0.0, 1.0])
    (fail,) = play.take(Fail)
    assert fail.exit_code == 5
    assert "constraints.unsafe: lambda is inf" in fail.text
    assert not play.take(Train)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weighs": "tune"}, "constraints.unsafe.weighs names 'tune', which is not in `princ"),
        ({"rate": {"principle": "x", "below": 0.5}}, "rate.principle names 'x', which is not"),
        ({"rate": {"token_limit": 9, "routes": ["x"]}}, "rate.routes names 'x', which is not"),
    ],
)
def test_a_constraint_names_what_there_is(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config_with(**changes)


def test_a_weight_follows_one_constraint_and_must_count() -> None:
    tree = config_with().model_dump()
    two = tree | {"constraints": {"a": UNSAFE, "b": UNSAFE}}
    with pytest.raises(ValidationError, match=r"b\.weighs names 'tone' as constraints\.a does"):
        Config.model_validate(two)
    with pytest.raises(ValidationError, match="'tone', a gate: its weight does not count"):
        Config.model_validate(tree | {"reward": {"gates": ["tone"]}})
    with pytest.raises(ValidationError, match="worst_case has no weights"):
        Config.model_validate(tree | {"reward": {"combine": "worst_case"}})
