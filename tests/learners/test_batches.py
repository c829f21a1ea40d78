"""Batches: samples built from an order, and the file from which a step can be replayed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from learners.batches import build_samples, read_batch, write_batch
from safeladder.records import (
    Completion,
    GroupKey,
    Message,
    Prompt,
    RolloutGroup,
    TrainGroup,
    TrainOrder,
)


def group(ordinal: int, lengths: tuple[int, ...]) -> RolloutGroup:
    completions = tuple(
        Completion(
            index=k,
            prompt_tokens=np.arange(3 + ordinal, dtype=np.int32),
            tokens=np.arange(10, 10 + length, dtype=np.int32),
            behavior_logprobs=np.linspace(-2, -1, length, dtype=np.float32),
            token_versions=np.full(length, ordinal, np.int32),
            text="",
            finish_reason="stop" if k else "length",
        )
        for k, length in enumerate(lengths)
    )
    prompt = Prompt(id=str(ordinal), messages=(Message("user", "hi"),), route="safety")
    key = GroupKey(0, ordinal)
    return RolloutGroup(key=key, attempt=1, fence=2, prompt=prompt, completions=completions)


def ordered(payload: RolloutGroup, rewards: tuple[float | None, ...]) -> TrainGroup:
    return TrainGroup(
        key=payload.key, attempt=1, payload=None, reference=None, rewards=rewards, audit='{"v": 1}'
    )


PAYLOADS = [group(0, (2, 5)), group(1, (1, 3))]
GROUPS = (ordered(PAYLOADS[0], (1.0, 0.0)), ordered(PAYLOADS[1], (None, 0.5)))
ORDER = TrainOrder(step=4, fence=2, groups=GROUPS)
REFERENCES = [[np.zeros(c.tokens.shape, np.float32) for c in p.completions] for p in PAYLOADS]


def test_a_completion_without_a_reward_is_left_out_and_order_is_kept() -> None:
    samples = build_samples(GROUPS, PAYLOADS, [None, None])
    assert [s.sample_id for s in samples] == ["0/0/0", "0/0/1", "0/1/1"]
    assert [s.reward for s in samples] == [1.0, 0.0, 0.5]
    assert all(s.reference_logprobs is None for s in samples)


def test_a_payload_of_another_attempt_is_refused() -> None:
    late = dataclasses.replace(PAYLOADS[0], attempt=2)
    with pytest.raises(ValueError, match="attempt 2"):
        build_samples(GROUPS[:1], [late], [None])


@pytest.mark.parametrize("references", [REFERENCES, [None, None]])
def test_a_written_batch_reads_back_equal_with_its_audit(
    tmp_path: Path, references: list[list[np.ndarray] | None]
) -> None:
    samples = build_samples(GROUPS, PAYLOADS, references)
    found, metadata = read_batch(write_batch(tmp_path / "batches", ORDER, samples))
    for expected, sample in zip(samples, found, strict=True):
        for field in dataclasses.fields(expected):
            left, right = getattr(expected, field.name), getattr(sample, field.name)
            assert np.array_equal(left, right), field.name
            assert getattr(left, "dtype", None) == getattr(right, "dtype", None), field.name
    assert json.loads(metadata["audit"]) == ['{"v": 1}', '{"v": 1}']
    assert (metadata["step"], metadata["fence"]) == ("4", "2")


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    samples = build_samples(GROUPS, PAYLOADS, [None, None])
    write_batch(tmp_path, ORDER, samples)
    assert [p.name for p in tmp_path.iterdir()] == ["step-4.safetensors"]


def test_a_step_that_is_done_again_replaces_its_batch_and_clears_what_killed_drivers_left(
    tmp_path: Path,
) -> None:
    (tmp_path / "step-4.1.partial").write_bytes(b"half")
    samples = build_samples(GROUPS, PAYLOADS, [None, None])
    write_batch(tmp_path, ORDER, samples[:1])
    path = write_batch(tmp_path, dataclasses.replace(ORDER, fence=4), samples)
    assert read_batch(path)[1]["fence"] == "4"
    assert [p.name for p in tmp_path.iterdir()] == ["step-4.safetensors"]
