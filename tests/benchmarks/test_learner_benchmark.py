"""Both sides of the benchmark train the same; a difference is told instead of a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learner import measure, report, tiny_model
from benchmarks.learner_sides import Work, make_samples

pytestmark = pytest.mark.engine


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(
        model=tiny_model(tmp_path),
        groups=2,
        siblings=4,
        prompt_tokens=8,
        max_new_tokens=16,
        threads=1,
    )


def test_the_median_length_is_half_of_the_maximum_and_siblings_share_a_prompt(work: Work) -> None:
    samples = make_samples(work, 512)
    lengths = [s.tokens.size for s in samples]
    assert np.median(lengths) == work.max_new_tokens / 2
    assert sum(lengths) == work.groups * work.siblings * work.max_new_tokens / 2
    assert max(lengths) <= work.max_new_tokens
    prompts = {(s.group, s.prompt_tokens.tobytes()) for s in samples}
    assert len(prompts) == work.groups


def test_both_sides_find_the_same_loss_and_a_difference_is_no_figure(work: Work) -> None:
    steps = measure(work, rounds=1)
    found = report(work, steps)
    assert found["name"] == "learner"
    assert min(found["tokens_per_s"].values()) > 0  # type: ignore[attr-defined]
    steps["plain"][1] = replace(steps["plain"][1], grad_norm=steps["plain"][1].grad_norm * 1.01)
    with pytest.raises(ValueError, match="the sides differ: grad_norm"):
        report(work, steps)
