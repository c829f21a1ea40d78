"""Both sides of the benchmark ask the same, and a difference is told instead of a figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.probe import compose, importance_seconds, main, tiny_model
from cluster.probe_plan import plan_trials
from curricula.type_difficulty import TypeDifficulty


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")  # put back what the command sets


def test_the_full_form_asks_20_rows_of_7_constraints_at_12_levels() -> None:
    trials = plan_trials(compose(20, 7), TypeDifficulty(), rounds=("single",))
    assert len(trials) == 20 * 12
    assert len({trial.cddi for trial in trials}) == 12
    assert {len(trial.constraints) for trial in trials} == {7}


def test_the_short_form_runs_both_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--short"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["name"] == "probe"
    assert found["answers"] == 2 * 4
    assert found["figure"] > 0
    assert found["backward_passes"] >= 2


def test_other_values_are_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "evals.importance.importance",
        lambda _, prompt, answer: np.zeros((len(prompt), len(answer))),
    )
    trials = plan_trials(compose(1, 3), TypeDifficulty(), rounds=("single",))
    with pytest.raises(ValueError, match="the two ways to importance differ"):
        importance_seconds(tiny_model(tmp_path / "model"), trials[:1], 2)
