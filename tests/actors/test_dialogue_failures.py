"""Environments that raise, hang and talk nonsense."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.deliberation.scripted import ScriptedTurns
from actors.lease_answers import GeneratedGroup
from safeladder.conversation import ModelTurn, Reply, SampleFailure
from safeladder.records import (
    GenerationFailure,
)

from .conftest import (
    Laboratory,
    draw,
    laboratory,
)
from .dialogue_room import Room, scripted


@pytest.fixture(scope="module")
def lab(model_path: Path) -> Iterator[Laboratory]:
    yield from laboratory("transformers", model_path, "keep")


class Faulty(ScriptedTurns):
    """Fails in the way that the user turn says."""

    calls = 0

    def reply(self, state: Any, turn: ModelTurn) -> Any:
        type(self).calls += 1
        match state[0] if state else "":
            case "raise":
                raise OSError("the tool is gone")
            case "hang":
                threading.Event().wait(1.0)
            case "nonsense":
                return "a bare text"
            case "object":
                return Reply(text="x", state=threading.Lock())
        return super().reply(state, turn)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "OSError: the tool is gone"),
        ("hang", "no answer within 0.2 s"),
        ("nonsense", "answers with a Reply, got str"),
        ("object", "TypeError"),
    ],
)
def test_an_environment_that_fails_costs_its_sample_in_bounded_time(
    lab: Laboratory,
    model_path: Path,
    fault: str,
    said: str,
) -> None:
    room = Room(lab, model_path, Faulty(), timeout_s=0.2, max_retries=1)
    Faulty.calls = 0
    made = room.converse(scripted(fault))
    assert [type(one) for one in made] == [SampleFailure, SampleFailure]
    assert said in made[0].detail
    assert Faulty.calls == 4, "each reply is asked for once more"
    failure = lab.run(room.role.generate(room.lease(scripted(fault))))
    assert isinstance(failure, GenerationFailure)
    assert (failure.cause, failure.retryable) == ("environment_error", True)
    assert said in failure.detail
    assert failure.detail.startswith("sample ")


def test_an_environment_that_hangs_in_all_its_threads_has_its_process_replaced(
    lab: Laboratory, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewards.threads.HOPELESS_S", 0.0)
    for_ever = threading.Event()

    class Hangs(ScriptedTurns):
        def reply(self, state: Any, turn: ModelTurn) -> Reply:
            for_ever.wait(20)
            return super().reply(state, turn)

    room = Room(lab, model_path, Hangs(), timeout_s=0.1, concurrency=1, max_retries=3)
    failure = lab.run(room.role.generate(room.lease(scripted("more"))))
    for_ever.set()
    assert isinstance(failure, GenerationFailure)
    assert (failure.cause, failure.retryable) == ("engine_error", True)
    status = lab.run(room.role.status())
    assert (status.is_dead, status.failure) == (True, "the environment hangs in all its threads")


def test_a_failed_sample_among_surplus_ones_costs_nothing_else(
    lab: Laboratory,
    model_path: Path,
) -> None:
    class FailsOnce(ScriptedTurns):
        num_failures = 0

        def reply(self, state: Any, turn: ModelTurn) -> Reply:
            if not type(self).num_failures:
                type(self).num_failures += 1
                raise OSError("once")
            return super().reply(state, turn)

    room = Room(lab, model_path, FailsOnce(), max_retries=0)
    order = room.lease(scripted("go on"), sampling=draw(3, 60), surplus=1)
    answer = lab.run(room.role.generate(order))
    assert isinstance(answer, GeneratedGroup)
    assert len(room.group(answer).completions) == 2
