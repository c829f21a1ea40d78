"""The table of judge accuracy: its arithmetic, and that no row is judged by what it taught."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from evals import judge_accuracy
from evals.judge_accuracy import ask, classify, main, measure, sample, table
from evals.judge_sets import JudgeSet, LabelledRow
from rewards.judge import Judge
from tests.evals.judge_files import write_sets

SCORER = "tests.rewards.stand_ins:ScriptedScorer"


def row(response: str, label: str, group: str) -> LabelledRow:
    return LabelledRow("q", response, label, group)


def test_accuracy_counts_an_invalid_verdict_as_not_right() -> None:
    truth = ["a"] * 6 + ["b"] * 2
    found = ["a", "a", "a", "b", None, None, "b", "a"]
    line = measure(JudgeSet("set", "value", ()), "judge", truth, found)
    assert line.accuracy == 4 / 8
    assert line.balanced == (3 / 6 + 1 / 2) / 2
    assert (line.majority, line.invalid, line.n) == (6 / 8, 2 / 8, 8)
    assert line.low < 0.5 < line.high
    assert "| set | value | judge | 8 | 0.500 | 0.215 to 0.785 | 0.500 | 0.750 | 0.250 |" in table(
        [line]
    )
    with pytest.raises(ValueError, match="0 rows"):
        measure(JudgeSet("set", "value", ()), "judge", [], [])


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], set[str]]]:
    """Groups of each fit and of the rows that it then labels."""
    seen: list[tuple[set[str], set[str]]] = []
    honest = judge_accuracy._fit_and_label

    def watch(training: Sequence[LabelledRow], rows: Sequence[LabelledRow]) -> Sequence[str | None]:
        seen.append(({r.group for r in training}, {r.group for r in rows}))
        return honest(training, rows)

    monkeypatch.setattr(judge_accuracy, "_fit_and_label", watch)
    return seen


def test_a_classifier_never_labels_a_group_that_it_was_fitted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = spy(monkeypatch)
    rows = [row(f"fair {i}" if i % 2 else f"foul {i}", "ab"[i % 2], str(i // 2)) for i in range(40)]
    found = classify(JudgeSet("set", "value", rows))
    assert len(seen) == 5
    assert all(not fitted & labelled for fitted, labelled in seen)
    assert list(found) == [r.label for r in rows]


def test_separate_training_rows_are_used_less_those_of_the_same_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = spy(monkeypatch)
    rows = [row("fair", "a", "1"), row("foul", "b", "2")]
    training = [row("fair", "a", "3"), row("foul", "b", "4"), row("fair", "b", "1")]
    assert classify(JudgeSet("set", "value", rows, training)) == ["a", "b"]
    assert seen == [({"3", "4"}, {"1", "2"})]


def test_a_language_model_gives_its_label_or_none() -> None:
    logprobs = {"alpha": [-1.0, -2.0], "beta": [-2.0, -1.0], "gamma": [float("nan"), -1.0]}
    judge = Judge(
        principle="value",
        template="value",
        completer=SCORER,
        completer_options={"logprobs": logprobs},
        mode="logits",
    )
    rows = [row(text, "good", text) for text in ("alpha", "beta", "gamma")]
    assert asyncio.run(ask(judge, rows)) == ["good", "bad", None]


def test_a_limit_draws_the_same_rows_every_time() -> None:
    assert sample(5, None) == sample(5, 9) == [0, 1, 2, 3, 4]
    drawn = sample(100, 10)
    assert drawn == sorted(set(drawn)) == sample(100, 10)
    assert len(drawn) == 10
    assert drawn != list(range(10))


def test_the_command_prints_a_line_for_each_set_and_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_accuracy, "COMPLETER", f"{__name__}:Undecided")
    main(["--data", str(write_sets(tmp_path)), "--set", "ETHICS", "--limit", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| ETHICS justice", "value", "smollm2"],
        ["| ETHICS justice", "value", "classifier"],
        ["| ETHICS deontology", "value", "smollm2"],
        ["| ETHICS deontology", "value", "classifier"],
    ]
    assert all(" | 10 | " in line for line in lines[2:])
    main(["--data", str(tmp_path), "--set", "CREAK", "--judge", "smollm2-reply"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("| 0.500 | 1.000 |")


class Undecided:
    """Finds every label equally likely, and writes none."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def complete(self, messages: Sequence[object], max_tokens: int) -> list[str]:
        return ["hm"] * len(messages)

    async def label_logprobs(
        self, conversations: Sequence[object], labels: Sequence[str]
    ) -> list[list[float]]:
        return [[-1.0] * len(labels) for _ in conversations]

    async def close(self) -> None:
        return None
