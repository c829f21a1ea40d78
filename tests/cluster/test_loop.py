"""What the loop tells the coordinator of its engines: the fleet is scripted."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from actors.rollout import EngineStatus
from actors.verifier import ScorePayloadLost
from cluster.fleet import Exhausted, Reply
from cluster.learner_group import LearnerReply
from cluster.loop import Loop
from cluster.protocol import (
    PROBE_ATTEMPT,
    Command,
    EngineServing,
    Event,
    Finish,
    PayloadLost,
    Score,
    ScoringLost,
    Tick,
    Train,
)
from cluster.rollout_fleets import RolloutFleets
from cluster.scorers import Scorers
from cluster.weight_store import WeightStore
from safeladder.constraint_weights import ConstraintWeights
from safeladder.errors import SafeladderError
from safeladder.records import GroupKey, StepPayloadsLost, TrainOrder

from .coordinator_play import make_config
from .scripted_fleet import ScriptedFleet, loaded, published

TURNS = 3


class Engines(ScriptedFleet):
    """One engine that answers each load with the same status."""

    def __init__(self, says: object) -> None:
        super().__init__("rollout-0")
        self._says = says

    def call(self, actor: str, method: str, arguments: object, **call: object) -> bool:
        self.events.append(Reply(actor=actor, context=call["context"], value=self._says))
        return True


class Listener:
    """A coordinator that writes down what it hears and ends after a few turns."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.constraints = ConstraintWeights({})

    def handle(self, event: Event) -> list[Command]:
        self.heard.append(event)
        ticks = sum(isinstance(heard, Tick) for heard in self.heard)
        return [Finish()] if ticks == TURNS else []

    def drain_transitions(self) -> list[object]:
        return []


def make_loop(
    listener: Listener,
    engines: ScriptedFleet,
    weights: WeightStore,
    verifiers: ScriptedFleet | None = None,
    reference: ScriptedFleet | None = None,
    learned: Sequence[LearnerReply] = (),
    probes: object = None,
    **more: object,
) -> Loop:
    return Loop(
        make_config(),
        fence=1,
        coordinator=listener,  # type: ignore[arg-type]
        ledger=Mock(),
        rollout=RolloutFleets({"rollout": engines}),  # type: ignore[dict-item]
        verifiers={"verifier/safety": verifiers} if verifiers else {},  # type: ignore[dict-item]
        reference=reference,  # type: ignore[arg-type]
        learners=Mock(waiting=[], poll=Mock(side_effect=[learned, *[[]] * TURNS])),
        weights=weights,
        fleets=Mock(step=lambda _: []),
        keeper=Mock(step=lambda: []),
        probes=probes or make_probes(),
        services=Mock(),
        telemetry=Mock(),
        **{"save": lambda _: None} | more,  # type: ignore[arg-type]
    )


def make_probes(**says: object) -> Mock:
    """No probes, unless a test says otherwise."""
    return Mock(
        **{"step": lambda: None, "standing": lambda: None, "holds": lambda _: False} | says,
        is_open=False,
    )


def versions_heard(engines: Engines, weights: WeightStore) -> list[int]:
    """What the coordinator hears of the engine's version in a few turns."""
    listener = Listener()
    make_loop(listener, engines, weights).run()
    return [event.version for event in listener.heard if isinstance(event, EngineServing)]


def store(version: int) -> WeightStore:
    weights = WeightStore(fence=1)
    weights.commit(published(version))
    return weights


@pytest.mark.parametrize("version", [0, 2])
def test_an_engine_that_echoes_the_digest_serves_the_version(version: int) -> None:
    assert versions_heard(Engines(loaded(version)), store(version)) == [version]


def test_an_engine_that_kept_an_older_version_is_heard_with_it() -> None:
    engines = Engines(loaded(1, failure="a checksum differs"))
    assert (versions_heard(engines, store(2)), engines.retired) == ([1], [])


@pytest.mark.parametrize(
    "status",
    [loaded(0, digest="", failure="a checksum differs"), loaded(0, digest=""), "lost"],
    ids=["failed", "base model", "no status"],
)
def test_the_base_model_does_not_pass_for_a_version_0_that_was_not_loaded(
    status: EngineStatus | str,
) -> None:
    engines = Engines(status)
    assert (versions_heard(engines, store(0)), engines.retired) == ([], ["rollout-0"])


def test_a_late_answer_to_an_evaluation_is_nobodys() -> None:
    engines = Engines(loaded(0))
    engines.events.append(Reply(actor="rollout-0", context=SimpleNamespace(index=1), value="late"))
    assert versions_heard(engines, store(0)) == [0]


@pytest.mark.parametrize(
    ("spent", "exit_code"), [("engines", 1), ("verifiers", 4), ("reference", 1)]
)
def test_a_fleet_that_is_spent_ends_the_run_with_its_exit_code(spent: str, exit_code: int) -> None:
    fleets = {name: ScriptedFleet() for name in ("engines", "verifiers", "reference")}
    fleets["verifiers"].name = "verifier/safety"
    fleets[spent].events.append(Exhausted(reason="it dies at once"))
    with pytest.raises(SafeladderError, match="its restarts are spent: it dies at once") as caught:
        make_loop(Listener(), weights=store(0), **fleets).run()
    assert caught.value.exit_code == exit_code


def test_payloads_that_the_learner_cannot_read_are_told_one_by_one() -> None:
    lost = ((GroupKey(0, 1), 1), (GroupKey(0, 4), 2))
    order = Train(TrainOrder(step=1, fence=1, groups=()))
    reply = LearnerReply(context=order, value=StepPayloadsLost(step=1, groups=lost))
    listener = Listener()
    make_loop(listener, ScriptedFleet(), store(0), learned=[reply]).run()
    heard = [event for event in listener.heard if isinstance(event, PayloadLost)]
    assert heard == [PayloadLost(key, attempt) for key, attempt in lost]


def test_a_payload_that_a_probe_cannot_read_is_not_lost_to_its_group() -> None:
    """The group may be in a running step by then, and its own calls tell."""
    key, fleet = GroupKey(0, 1), "verifier/safety"
    verifiers = ScriptedFleet("judge-0")
    value = ScorePayloadLost(actor="judge-0", key=key, attempt=1, principle="safety")
    for number in (-1, 2):
        call = Score(key, 1, fleet, number, "safety", "payload", (0,), 30.0)
        verifiers.events.append(Reply(actor="judge-0", context=call, value=value))
    listener = Listener()
    make_loop(listener, ScriptedFleet(), store(0), verifiers).run()
    heard = [event for event in listener.heard if isinstance(event, PayloadLost | ScoringLost)]
    lost = ScoringLost(key, 1, fleet, -1), ScoringLost(key, 1, fleet, 2)
    assert heard == [lost[0], PayloadLost(key, 1), lost[1]]


def test_a_verifier_is_told_another_attempt_for_each_probe() -> None:
    verifiers = ScriptedFleet("judge-0")
    scorers = Scorers({"verifier/safety": verifiers}, None, Mock(), Mock(), Mock())  # type: ignore[dict-item]
    for number in (1, -1, -2):
        scorers.score(Score(GroupKey(0, 1), 7, "verifier/safety", number, "s", "p", (0,), 30.0))
    attempts = [call.arguments["attempt"] for call in verifiers.take()]
    assert attempts == [7, PROBE_ATTEMPT + 1, PROBE_ATTEMPT + 2]
