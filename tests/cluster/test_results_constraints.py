"""The table of a run whose held-out prompts have constraints."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.evaluation import HeldOutAnswer
from cluster.results import Results
from cluster.run_directory import RunDirectory
from safeladder.records import Completion, Message, Prompt
from tests.cluster.coordinator_play import make_config

PROMPTS = [
    Prompt(
        id=f"p{n}",
        messages=(Message("user", f"Tell me of {n}."),),
        route="instruction",
        meta={
            "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
            "kwargs": [{}, {}],
        },
    )
    for n in range(3)
]


def answers(*texts: str) -> list[HeldOutAnswer]:
    one = np.array([1], np.int32)
    return [
        HeldOutAnswer(
            prompt=prompt,
            completion=Completion(
                index=0,
                prompt_tokens=one,
                tokens=one,
                behavior_logprobs=np.array([-1.0], np.float32),
                token_versions=one,
                text=text,
                finish_reason="stop",
            ),
            verdicts={},
        )
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


def test_a_run_shows_constraints_met_before_and_after(tmp_path: Path) -> None:
    config = make_config(run={"name": "r", "root": str(tmp_path)})
    directory = RunDirectory(tmp_path)
    results = Results(config, directory, PROMPTS)
    results.add("before", answers("a, b", "a, b", "a b"))
    results.add("after", answers('"a b"', "a b", 'Well:\n"a b"'))
    table = results.table()
    assert table["constraints_met"]["before"] == pytest.approx(1 / 6)
    assert table["constraints_met"]["after"] == pytest.approx(4 / 6)
    assert table["instructions_met"]["after"] == pytest.approx(1 / 3)
    assert table["instructions_met_loose"]["after"] == pytest.approx(2 / 3)
    assert "constraints_met 16.7 %" in results.describe("before")
    again = Results(config, directory, PROMPTS)
    assert again.table() == table


def test_a_row_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    odd = replace(PROMPTS[0], meta={"instruction_id_list": ["no:such"], "kwargs": [{}]})
    results = Results(make_config(), RunDirectory(tmp_path), [odd, *PROMPTS[1:]])
    given = answers("a b", "a b", "a b")
    results.add("before", [replace(given[0], prompt=odd), *given[1:]])
    assert "constraints_met 50.0 %" in results.describe("before")


def test_a_stage_whose_answers_were_not_all_written_is_not_there(tmp_path: Path) -> None:
    config, directory = make_config(), RunDirectory(tmp_path)
    file = directory.evaluation / "before.jsonl"
    given = answers("a b", "a b", "a b")
    Results(config, directory, PROMPTS).add("before", given)
    first_row = file.read_bytes().index(b"\n") + 1
    file.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (first_row + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            Results(config, directory, PROMPTS).add("before", given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not Results(config, directory, PROMPTS).has("before")
