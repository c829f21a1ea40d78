"""Trials are asked once, in full conversations, and what fails is never a number."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.order_trials import Trial
from evals.trial_journal import Answered, TrialJournal
from evals.trial_runner import SURPLUS, answer_trials
from safeladder.engine_profile import EngineProfile
from safeladder.errors import ConfigError, DataError
from safeladder.ports import PromptTooLongError
from safeladder.records import Completion, Prompt, Sampling

SETTINGS = {"model": "m", "max_new_tokens": 4}


class EchoEngine:
    """Answers the last user turn in capitals; "hang" never, "long" not at all, "break" fatally."""

    def __init__(self, max_sequences: int = 4) -> None:
        self.max_sequences = max_sequences
        self.asked: list[tuple[str, ...]] = []
        self.running = self.most = 0

    def limits(self) -> EngineProfile:
        return EngineProfile(kv_tokens=1000, max_sequences=self.max_sequences)

    async def generate(
        self, request_id: str, prompt: Prompt, sampling: Sampling, begun: Any = None
    ) -> AsyncIterator[Completion]:
        assert (sampling.temperature, sampling.num_samples) == (0.0, 1)
        self.asked.append(tuple(message.content for message in prompt.messages))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            text = prompt.messages[-1].content
            if text == "long":
                raise PromptTooLongError("prompt x renders to 9 tokens, the limit is 8")
            if text == "break":
                raise RuntimeError("the engine process is dead")
            await asyncio.sleep(3600 if text == "hang" else 0.001)
            yield Completion(
                index=0,
                prompt_tokens=np.zeros(3, np.int32),
                tokens=np.zeros(2, np.int32),
                behavior_logprobs=np.zeros(2, np.float32),
                token_versions=np.zeros(2, np.int32),
                text=text.upper(),
                finish_reason="stop",
            )
        finally:
            self.running -= 1


def trial(name: str, *turns: str) -> Trial:
    return Trial(
        id=name,
        round="multi" if len(turns) > 1 else "single",
        variant="level",
        prompt=name,
        cluster=name,
        ranks=(0, 1),
        inversions=0,
        cddi=1.0,
        constraints=({"id": "a:b", "kwargs": {}, "text": ""},) * 2,
        turns=turns,
    )


def ends_in(trial: Trial, answer: str) -> list[bool | str]:
    return [answer == trial.turns[-1].upper(), "the rule broke"]


def answer(
    engines: Sequence[EchoEngine], trials: Sequence[Trial], path: Path, judge: Any = ends_in
) -> dict[str, Answered]:
    with TrialJournal(path, SETTINGS) as journal:
        work = answer_trials(
            engines,  # type: ignore[arg-type]
            trials,
            judge,
            journal,
            max_new_tokens=4,
            deadline_s=0.2,
        )
        asyncio.run(work)
        return dict(journal.answered)


def test_each_turn_is_answered_and_only_the_last_answer_is_judged(tmp_path: Path) -> None:
    engine = EchoEngine()
    found = answer([engine], [trial("t", "seed", "one.", "two.")], tmp_path / "trials.jsonl")
    assert engine.asked == [
        ("seed",),
        ("seed", "SEED", "one."),
        ("seed", "SEED", "one.", "ONE.", "two."),
    ]
    assert found["t"].answers == ("SEED", "ONE.", "TWO.")
    assert found["t"].passed == (True, None)
    assert found["t"].causes == {"1": "the rule broke"}
    assert found["t"].tokens == 6


def test_every_engine_is_kept_full(tmp_path: Path) -> None:
    engines = [EchoEngine(4), EchoEngine(8)]
    trials = [trial(f"t{k}", "x") for k in range(60)]
    assert len(answer(engines, trials, tmp_path / "trials.jsonl")) == 60
    assert [engine.most for engine in engines] == [4 * SURPLUS, 8 * SURPLUS]
    assert min(len(engine.asked) for engine in engines) > 5


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = [trial("a", "x"), trial("b", "y"), trial("late", "hang"), trial("wide", "long")]
    with TrialJournal(path, SETTINGS) as journal:
        work = answer_trials(
            [EchoEngine()],  # type: ignore[list-item]
            trials,
            ends_in,
            journal,
            max_new_tokens=4,
            deadline_s=0.05,
        )
        asyncio.run(work)
        assert journal.answered["late"].failure == "deadline"
        assert journal.answered["wide"].failure == "prompt_too_long"
    again = EchoEngine()
    found = answer([again], [*trials, trial("c", "z")], path)
    assert sorted(again.asked) == [("hang",), ("z",)]  # another try, and what is new
    assert found["a"].answers == ("X",)
    assert found["late"].passed == ()


def test_a_broken_engine_ends_the_probe_and_keeps_what_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    with pytest.raises(RuntimeError, match="process is dead"):
        answer([EchoEngine(1)], [trial("a", "x"), trial("b", "break")], path)
    with TrialJournal(path, SETTINGS) as journal:
        assert set(journal.answered) <= {"a"}


def test_a_rule_without_end_is_invalid_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr("evals.trial_runner.JUDGE_DEADLINE_S", 0.05)
    over = threading.Event()

    def hangs(trial: Trial, answer: str) -> list[bool | str]:
        if trial.id == "a":
            over.wait(20)
        return [True, True]

    found = answer([EchoEngine()], [trial("a", "x"), trial("b", "y")], tmp_path / "j", hangs)
    over.set()
    assert found["a"].passed == (None, None)
    assert found["b"].passed == (True, True)


def line(name: str) -> str:
    return json.dumps({"id": name, "answers": ["A"], "finish_reason": "stop", "passed": [True]})


def test_a_cut_last_line_is_dropped_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps({"settings": SETTINGS}) + "\n" + line("a") + "\n" + line("b")[:20])
    with TrialJournal(path, SETTINGS) as journal:
        assert set(journal.answered) == {"a"}
        journal.append(Answered(id="c", answers=("é\udce4",), finish_reason="stop", passed=(None,)))
    assert "the last line was cut" in caplog.text
    with TrialJournal(path, SETTINGS) as journal:
        assert set(journal.answered) == {"a", "c"}
        assert journal.answered["c"].passed == (None,)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    for broken, message in (("{", r"trials\.jsonl:3: not JSON"), ('{"id": 1}', r":3: no trial")):
        path.write_text("\n".join([json.dumps({"settings": SETTINGS}), line("a"), broken, ""]))
        with pytest.raises(DataError, match=message):
            TrialJournal(path, SETTINGS)


def test_other_settings_are_refused_and_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    TrialJournal(path, SETTINGS).close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="max_new_tokens 4, and now it is 8"):
        TrialJournal(path, SETTINGS | {"max_new_tokens": 8})
    assert path.read_bytes() == before


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    with (
        TrialJournal(tmp_path / "j", SETTINGS),
        pytest.raises(ConfigError, match="another process"),
    ):
        TrialJournal(tmp_path / "j", SETTINGS)
