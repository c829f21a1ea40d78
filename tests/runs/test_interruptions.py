"""A real run in which hardly any group is finished by its deadline: all of them go on, in this
engine or the other, and no token is lost."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from learners.batches import batch_path, read_batch
from tests.runs.conftest import finished

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.timeout(400)]

STEPS = 4
BOUND = 4


def test_groups_that_pass_their_deadline_go_on_and_keep_their_tokens(
    tiny_config: Callable[..., Path],
) -> None:
    rollout = {
        "actors": 2, "max_new_tokens": 150, "group_deadline_s": 1.0, "max_attempts": 50,
        "max_concurrent_groups": 6,
    }  # fmt: skip
    schedule = {"groups_per_step": 4, "max_staleness": BOUND}
    run = finished(tiny_config(steps=STEPS, overrides={"rollout": rollout, "schedule": schedule}))
    so_far: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    with sqlite3.connect(run / "ledger.sqlite") as ledger:
        for epoch, ordinal, target, detail in ledger.execute(
            "SELECT epoch, ordinal, target, detail FROM history ORDER BY rowid"
        ):
            found = re.fullmatch(r"interrupted \(deadline\): (\d+) tokens so far", detail)
            if found:
                so_far[epoch, ordinal].append(int(found[1]))
            elif target == "pending":
                so_far.pop((epoch, ordinal), None)  # a failure: it began anew
        trained = {
            (epoch, ordinal): num_tokens
            for epoch, ordinal, num_tokens in ledger.execute(
                "SELECT epoch, ordinal, num_tokens FROM groups WHERE state = 'trained'"
            )
        }
    went_on = {key: counts for key, counts in so_far.items() if key in trained}
    assert len(trained) == STEPS * 4
    assert len(went_on) > 2
    for key, counts in went_on.items():
        assert counts == sorted(set(counts)), f"{key} lost tokens: {counts}"
        assert trained[key] >= counts[-1]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("rollout/continued", 0) for row in rows) > 2
    for step in range(1, STEPS + 1):
        samples, _ = read_batch(batch_path(run / "batches", step))
        for sample in samples:
            assert (sample.token_versions[1:] >= sample.token_versions[:-1]).all()
            assert step - 1 - sample.token_versions.min() <= BOUND
