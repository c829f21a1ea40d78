"""Whose answers an evaluation takes: fleets are scripted, engines and verifiers are played."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.lease_answers import GeneratedGroup
from actors.verifier import ScoredGroup
from cluster import evaluation
from cluster.evaluation import MAX_TRIES, Evaluation, HeldOutAnswer
from cluster.fleet import FleetEvent, Joined, Lost, Reply
from cluster.weight_store import PublishedWeights
from safeladder.records import (
    Completion,
    GroupHeader,
    Lease,
    Message,
    Prompt,
    RolloutGroup,
    Verdict,
    VerdictStatus,
)

from .coordinator_play import make_config
from .scripted_fleet import Call, ScriptedFleet, loaded, published

LAST = 3
PROMPT = Prompt(id="a", messages=(Message("user", "hello"),), route="safety")


def answer(call: Call, version: int) -> Reply:
    lease: Lease = call.arguments["lease"]
    completion = Completion(
        index=0,
        prompt_tokens=np.ones(1, np.int32),
        tokens=np.ones(2, np.int32),
        behavior_logprobs=np.zeros(2, np.float32),
        token_versions=np.full(2, version, np.int32),
        text=f"by version {version}",
        finish_reason="stop",
    )
    identity: dict[str, Any] = {"key": lease.key, "attempt": lease.attempt, "fence": lease.fence}
    header = GroupHeader(
        **identity, engine=call.actor, lengths=(2,), min_version=version, max_version=version,
        sha256="", generate_s=0.0,
    )  # fmt: skip
    group = RolloutGroup(**identity, prompt=lease.prompt, completions=(completion,))
    value = GeneratedGroup(header=header, payload=group)
    return Reply(actor=call.actor, context=call.context, value=value)


def judged(call: Call) -> Reply:
    verdict = Verdict(
        sample_id="-1/0/0", principle="safety", verifier="v", verifier_version="1",
        status=VerdictStatus.OK, score=1.0,
    )  # fmt: skip
    value = ScoredGroup(
        actor=call.actor, key=call.arguments["key"], attempt=1, principle="safety",
        verdicts=(verdict,),
    )  # fmt: skip
    return Reply(actor=call.actor, context=call.context, value=value)


class Play:
    """One prompt, one principle, one engine of version ``LAST`` (or of the base model)."""

    def __init__(self, weights: PublishedWeights | None) -> None:
        self.engines = ScriptedFleet("rollout-0")
        self.verifiers = ScriptedFleet("safety-0")
        self.evaluation = Evaluation(
            make_config(), [PROMPT], self.engines, {"safety": self.verifiers}, 1, weights  # type: ignore[arg-type, dict-item]
        )  # fmt: skip

    def step(self, *events: FleetEvent) -> list[Call]:
        """One step after what happened to the engines; the calls that they get."""
        self.engines.events += events
        self.evaluation.step()
        return self.engines.take()

    def finish(self, call: Call) -> list[HeldOutAnswer]:
        """The verifier judges what ``call`` brought at ``LAST``."""
        self.step(answer(call, LAST))
        self.verifiers.events += [judged(score) for score in self.verifiers.take()]
        self.step()
        assert self.evaluation.is_done
        return self.evaluation.answers


Make = Callable[[PublishedWeights | None], Play]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(evaluation, "fetch", lambda handle, _: handle)
    return Play


def reply(call: Call, value: Any) -> Reply:
    return Reply(actor=call.actor, context=call.context, value=value)


def test_the_base_model_answers_without_any_load(play: Make) -> None:
    (asked,) = play(None).step()
    assert asked.method == "generate"


def test_an_engine_is_asked_only_once_it_has_echoed_the_version(play: Make) -> None:
    run = play(published(LAST))
    (load,) = run.step()
    assert (load.method, load.arguments["manifest"].version) == ("load_weights", LAST)
    (asked,) = run.step(reply(load, loaded(LAST)))
    assert asked.method == "generate"
    (only,) = run.finish(asked)
    assert only.completion.text == f"by version {LAST}"
    assert only.verdicts["safety"].score == 1.0


def test_a_replacement_loads_the_version_before_it_answers(play: Make) -> None:
    run = play(published(LAST))
    (load,) = run.step()
    (asked,) = run.step(reply(load, loaded(LAST)))
    run.engines.ready = ["rollout-1"]
    (again,) = run.step(
        Lost(actor="rollout-0", reason="kill -9", contexts=(asked.context,)),
        Joined(actor="rollout-1", value=None),
    )
    assert (again.actor, again.method) == ("rollout-1", "load_weights")
    (asked,) = run.step(reply(again, loaded(LAST)))
    assert (asked.actor, asked.method) == ("rollout-1", "generate")
    assert len(run.finish(asked)) == 1


@pytest.mark.parametrize(
    "status",
    [loaded(LAST - 1), loaded(LAST, digest=""), loaded(LAST, failure="the disk is gone"), "lost"],
    ids=["older", "other bytes", "failed", "no status"],
)
def test_an_engine_that_does_not_load_the_version_is_replaced(play: Make, status: object) -> None:
    run = play(published(LAST))
    (load,) = run.step()
    assert run.step(reply(load, status)) == []
    assert run.engines.retired == ["rollout-0"]


def test_an_answer_of_another_version_is_not_taken(play: Make) -> None:
    run = play(published(LAST))
    (load,) = run.step()
    (asked,) = run.step(reply(load, loaded(LAST)))
    for _ in range(MAX_TRIES - 1):
        (asked,) = run.step(answer(asked, LAST - 1))
    run.step(answer(asked, LAST - 1))
    assert run.evaluation.is_done
    assert run.evaluation.answers == []


def test_late_answers_to_the_loop_are_not_the_evaluations(play: Make) -> None:
    run = play(published(LAST))
    (load,) = run.step()
    of_the_loop = SimpleNamespace(version=2), 0, "load"
    late = [Reply(actor="rollout-0", context=context, value=None) for context in of_the_loop]
    (asked,) = run.step(reply(load, loaded(LAST)), *late)
    run.verifiers.events += [
        Reply(actor="safety-0", context=SimpleNamespace(call=1), value=None),
        Lost(actor="safety-1", reason="kill -9", contexts=(SimpleNamespace(call=2), "probe")),
    ]
    run.step(Lost(actor="rollout-9", reason="kill -9", contexts=of_the_loop))
    assert not run.evaluation.is_done, "the prompt is still out"
    assert len(run.finish(asked)) == 1
