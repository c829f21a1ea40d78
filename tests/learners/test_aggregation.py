"""Token weights: the four aggregations by hand, and as sums that no split can change."""

from __future__ import annotations

import numpy as np
import pytest

from learners.aggregation import Aggregation, token_weights


def masks(*lengths: int) -> list[np.ndarray]:
    return [np.ones(length, np.float32) for length in lengths]


def test_each_aggregation_by_hand() -> None:
    # Group a: sequences of 1 and 3 tokens; group b: one sequence of 4.
    lengths, groups = masks(1, 3, 4), ["a", "a", "b"]
    token = token_weights(lengths, groups, "token-mean")
    prompt = token_weights(lengths, groups, "prompt-token-mean")
    sequence = token_weights(lengths, groups, "seq-mean-token-mean")
    assert [w[0] for w in token] == pytest.approx([1 / 8, 1 / 8, 1 / 8])
    assert [w[0] for w in prompt] == pytest.approx([1 / 8, 1 / 8, 1 / 8])
    assert [w[0] for w in sequence] == pytest.approx([1 / 3, 1 / 9, 1 / 12])


def test_seq_mean_token_sum_gives_every_token_the_same_weight_whatever_its_answer() -> None:
    weights = token_weights(masks(1, 3), ["a", "b"], "seq-mean-token-sum", max_tokens=10)
    assert [w.tolist() for w in weights] == [[1 / 20], [1 / 20] * 3]


def test_prompt_token_mean_gives_every_prompt_the_same_weight() -> None:
    weights = token_weights(masks(1, 1, 8), ["a", "a", "b"], "prompt-token-mean")
    assert [w.sum() for w in weights] == pytest.approx([1 / 4, 1 / 4, 1 / 2])


@pytest.mark.parametrize("aggregation", ["token-mean", "prompt-token-mean", "seq-mean-token-mean"])
def test_weights_sum_to_one_and_tool_tokens_weigh_nothing(aggregation: Aggregation) -> None:
    lengths = [*masks(2, 5), np.array([1, 0, 0, 1], np.float32), np.zeros(3, np.float32)]
    weights = token_weights(lengths, ["a", "a", "b", "c"], aggregation)
    assert sum(w.sum() for w in weights) == pytest.approx(1)
    assert weights[2][1] == weights[2][2] == 0
    assert not weights[3].any()


def test_equals_the_mean_of_means_that_its_name_says() -> None:
    losses = [np.array([1.0, 3.0]), np.array([5.0]), np.array([2.0, 2.0, 8.0])]
    lengths, groups = masks(2, 1, 3), ["a", "a", "b"]

    def total(aggregation: Aggregation) -> float:
        weights = token_weights(lengths, groups, aggregation)
        return float(sum((w * x).sum() for w, x in zip(weights, losses, strict=True)))

    assert total("token-mean") == pytest.approx(np.concatenate(losses).mean())
    assert total("prompt-token-mean") == pytest.approx(np.mean([9 / 3, 12 / 3]))
    assert total("seq-mean-token-mean") == pytest.approx(np.mean([2, 5, 4]))


def test_a_batch_without_trained_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no trained token"):
        token_weights([np.zeros(3, np.float32)], ["a"], "token-mean")
    with pytest.raises(ValueError, match="0 and 1"):
        token_weights([np.array([0.5], np.float32)], ["a"], "token-mean")
