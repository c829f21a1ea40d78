"""Packing: nothing lost, nothing doubled, every budget kept, ranks alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.packing import Span, pack
from safeladder.records import Floats, Tokens


@dataclass(frozen=True)
class Sample:
    prompt_tokens: Tokens
    tokens: Tokens
    loss_mask: Floats


def sample(prompt: list[int], tokens: list[int], mask: list[int] | None = None) -> Sample:
    trained = [1] * len(tokens) if mask is None else mask
    return Sample(
        np.array(prompt, np.int32), np.array(tokens, np.int32), np.array(trained, np.float32)
    )


def test_siblings_share_their_prompt_and_their_last_tokens_are_no_input() -> None:
    [[row]] = pack([sample([1, 2], [3, 4, 5]), sample([1, 2], [6, 7])], ranks=1, budget=99)
    assert row.tokens.tolist() == [1, 2, 3, 4, 6]
    assert row.positions.tolist() == [0, 1, 2, 3, 2]
    assert row.targets.tolist() == [3, 4, 5, 6, 7]
    assert row.logit_index.tolist() == [1, 2, 3, 1, 4]
    assert row.spans == (Span(2, 0), Span(2, 0), Span(1, 0))


def test_each_prompt_begins_spans_of_its_own_and_answers_of_one_token_have_none() -> None:
    [[row]] = pack([sample([1], [2, 3]), sample([1], [9]), sample([4], [5, 6])], ranks=1, budget=99)
    assert row.tokens.tolist() == [1, 2, 4, 5]
    assert row.spans == (Span(1, 0), Span(1, 0), Span(1, 2), Span(1, 2))
    assert row.logit_index.tolist() == [0, 1, 0, 2, 3]


def test_streams_follow_the_targets_and_tool_tokens_are_context_only() -> None:
    samples = [sample([1], [2, 3, 4], mask=[1, 0, 1]), sample([5], [6])]
    [[row]] = pack(samples, ranks=1, budget=99)
    assert row.targets.tolist() == [2, 4, 6]
    assert row.tokens.tolist() == [1, 2, 3, 5]
    assert row.gather([np.array([10, 11, 12]), np.array([20])]).tolist() == [10, 12, 20]


def test_a_sequence_beyond_the_budget_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"3 input tokens.*micro_batch_tokens = 2"):
        pack([sample([1, 2], [3, 4])], ranks=1, budget=2)


def test_a_batch_without_trained_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no trained token"):
        pack([sample([1], [2], mask=[0])], ranks=1, budget=9)


def test_a_rank_without_work_gets_padding_that_belongs_to_no_sequence() -> None:
    rows = pack([sample([1], [2, 3])], ranks=2, budget=9)
    assert [len(own) for own in rows] == [1, 1]
    assert rows[0][0].pieces
    assert rows[1][0].pieces == ()


@pytest.mark.engine  # importing OpenRLHF's balancer pulls transformers in, which takes seconds
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=30
    ),
    st.integers(1, 3),
    st.integers(17, 60),
)
def test_every_trained_token_appears_once_under_the_budget_on_ranks_with_equal_counts(
    shapes: list[tuple[int, int, int]], ranks: int, budget: int
) -> None:
    samples = [sample([100 + p] * n, list(range(1, t + 1))) for p, n, t in shapes]
    if not any(s.tokens.size for s in samples):
        return
    rows = pack(samples, ranks=ranks, budget=budget)
    assert len({len(own) for own in rows}) == 1
    seen: dict[int, list[int]] = {}
    for own in rows:
        for row in own:
            assert row.tokens.size <= budget
            assert sum(span.length for span in row.spans) == row.tokens.size
            lengths = [p.trained.size for p in row.pieces]
            for piece, targets in zip(
                row.pieces, np.split(row.targets, np.cumsum(lengths)[:-1]), strict=False
            ):
                assert piece.sequence not in seen
                seen[piece.sequence] = targets.tolist()
    assert seen == {i: s.tokens.tolist() for i, s in enumerate(samples) if s.tokens.size}


@pytest.mark.engine
def test_ranks_get_similar_amounts_of_tokens() -> None:
    random = np.random.default_rng(0)
    samples = [sample([i], [1] * int(random.integers(2, 60))) for i in range(64)]
    tokens = [sum(r.tokens.size for r in own) for own in pack(samples, ranks=4, budget=256)]
    assert max(tokens) <= 1.02 * min(tokens)
