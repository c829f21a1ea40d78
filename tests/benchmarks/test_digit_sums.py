"""What the studies of one-digit sums count; nothing is trained."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import objectives, staleness
from benchmarks.digit_sums import (
    CONFIG,
    PROMPTS,
    Curve,
    final_reward,
    mean_curve,
    write_prompts,
)
from safeladder.config_loading import load_config


def steps(*rewards: float) -> Curve:
    return [
        {
            "train/step": float(number),
            "reward/mean": reward,
            "train/staleness_mean": 1.0,
            "train/kl_behavior": 0.1 * number,
            "train/ratio_max": 2.0,
        }
        for number, reward in enumerate(rewards, 1)
    ]


def test_every_sum_is_asked_once_with_its_answer(tmp_path: Path) -> None:
    write_prompts(tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    sums = {row["prompt"]: int(row["reference"]) for row in rows}
    assert len(sums) == len(rows) == 100
    for prompt, total in sums.items():
        found = re.fullmatch(r"What is (\d) \+ (\d)\?", prompt)
        assert found is not None
        assert int(found[1]) + int(found[2]) == total


def test_the_final_reward_is_that_of_the_last_five_steps() -> None:
    assert final_reward(steps(0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.5)) == pytest.approx(0.3)


def test_a_curve_is_the_mean_of_its_seeds() -> None:
    assert mean_curve([steps(0.0, 1.0), steps(1.0, 0.0)], "reward/mean") == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize("ways", [staleness.WAYS, objectives.WAYS])
def test_every_way_is_a_config_of_the_same_work(ways: dict[str, list[str]]) -> None:
    common = objectives.COMMON if ways is objectives.WAYS else []
    configs = [load_config([CONFIG], [*words, *common]) for words in ways.values()]
    assert all(config.data.train == (PROMPTS,) for config in configs)
    assert {(c.run.steps, c.schedule.groups_per_step, c.rollout.group_size) for c in configs} == {
        (45, 8, 8)
    }
    told = {(c.schedule.max_staleness, c.learner.objective.model_dump_json()) for c in configs}
    assert len(told) == len(ways)


def test_the_interval_is_students() -> None:
    low, high = staleness.interval([0.0, 0.01, 0.02])
    assert mean((low, high)) == pytest.approx(0.01)
    assert (high - low) / 2 == pytest.approx(4.303 * 0.01 / math.sqrt(3))


def test_a_way_that_differs_or_is_unsure_is_missed_by_name() -> None:
    plain = [steps(*[reward] * 5) for reward in (0.90, 0.92, 0.94)]
    worse = [steps(*[reward] * 5) for reward in (0.84, 0.86, 0.88)]
    unsure = [steps(*[reward] * 5) for reward in (0.80, 0.92, 1.00)]
    same = {staleness.SYNCHRONOUS: plain, "staleness-1": plain}
    assert staleness.missed(staleness.compared(same)) == []
    found = staleness.missed(staleness.compared({**same, "staleness-2": worse}))
    assert found == ["staleness-2 differs by -0.060; the bar is 0.05"]
    (miss,) = staleness.missed(staleness.compared({**same, "staleness-4": unsure}))
    assert miss.startswith("staleness-4: interval -0.")


def test_one_seed_has_no_interval_and_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert staleness.main(["--seeds", "7"]) == 2
    assert "two to ten" in capsys.readouterr().err


def test_a_collapse_is_told_from_a_rise() -> None:
    rise, collapse = steps(*[0.1 * n for n in range(10)]), steps(*[0.9] * 5, *[0.1] * 5)
    table = objectives.compared({"cpgd": [rise], "grpo": [collapse]})
    assert table["cpgd"]["fall"] == pytest.approx(0.0)
    assert table["grpo"]["fall"] == pytest.approx(0.8)
    assert "| grpo | 0.900 | 0.100 | 0.900 | 0.800 |" in objectives.markdown(table)
