"""What the engine does before DeepSpeed starts: settings it refuses, locks it clears."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from learners.deepspeed_engine import clear_stale_locks
from learners.learner import Learner
from learners.policy_update import warmed_up
from safeladder.errors import ConfigError
from tests.learners.ranks import MemoryStore, make_config


def test_stale_locks_of_killed_builds_are_cleared_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    with caplog.at_level(logging.WARNING):
        clear_stale_locks(tmp_path)
    assert not lock.exists()
    assert str(lock) in caplog.text


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"micro_batch_tokens": 31}, "learner.micro_batch_tokens is 31"),
        ({"dtype": "bfloat16", "zero_stage": 0}, "learner.zero_stage 0"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused_at_once(
    tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=key):
        Learner(0, 1, make_config(tmp_path, tmp_path, **settings), MemoryStore())


def test_the_learning_rate_warms_up_linearly_then_stays() -> None:
    assert [warmed_up(1.0, step, 4) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert warmed_up(1.0, 1, 0) == 1.0
