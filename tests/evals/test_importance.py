"""Importance is what finite differences and the plain backward pass say, in less work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from evals.importance import greedy_answer, importance
from tests.tiny_model import tiny_model, tiny_tokenizer

PROMPT = np.arange(5, 22, dtype=np.int32)
ANSWER = np.asarray([9, 40, 41, 7, 99, 12, 40], np.int32)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_tokenizer()).requires_grad_(False)


def plain(model: Any) -> np.ndarray:
    """One forward pass over everything and one backward pass through everything for each token."""
    trained = tiny_model(tiny_tokenizer())
    trained.load_state_dict(model.state_dict())
    columns = []
    for m, token in enumerate(ANSWER):
        ids = torch.from_numpy(np.concatenate([PROMPT, ANSWER]).astype(np.int64))
        embeddings = trained.get_input_embeddings()(ids).detach().requires_grad_()
        logits = trained(inputs_embeds=embeddings[None]).logits[0]
        torch.softmax(logits[PROMPT.size + m - 1], -1)[int(token)].backward()
        assert embeddings.grad is not None
        columns.append((embeddings.grad * embeddings.detach()).sum(-1)[: PROMPT.size])
    return torch.stack(columns, 1).numpy()


@pytest.mark.parametrize("chunk_tokens", [1, 3, 16])
def test_it_equals_the_plain_full_backward_pass(model: Any, chunk_tokens: int) -> None:
    found = importance(model, PROMPT, ANSWER, chunk_tokens=chunk_tokens)
    assert found.shape == (PROMPT.size, ANSWER.size)
    expected = plain(model)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_it_is_the_slope_along_each_embedding(model: Any) -> None:
    """Scaling the embedding of token n by 1 + e changes p(y_m) by e * I[n, m]."""
    precise = tiny_model(tiny_tokenizer()).double().requires_grad_(False)
    precise.load_state_dict(model.state_dict())
    ids = torch.from_numpy(np.concatenate([PROMPT, ANSWER]).astype(np.int64))
    places = PROMPT.size - 1 + np.arange(ANSWER.size)

    def probabilities(n: int, e: float) -> torch.Tensor:
        embeddings = precise.get_input_embeddings()(ids).clone()
        embeddings[n] *= 1 + e
        logits = precise(inputs_embeds=embeddings[None]).logits[0, places]
        return torch.softmax(logits, -1)[np.arange(ANSWER.size), ANSWER]

    # Its norms compute in float32 anyhow, so a step must be far above their rounding.
    slopes = [(probabilities(n, 0.01) - probabilities(n, -0.01)) / 0.02 for n in range(PROMPT.size)]
    expected = torch.stack(slopes).numpy()
    found = importance(model, PROMPT, ANSWER)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_what_stands_behind_a_token_does_not_change_its_importance(model: Any) -> None:
    whole = importance(model, PROMPT, ANSWER, chunk_tokens=2)
    part = importance(model, PROMPT, ANSWER[:4], chunk_tokens=2)
    np.testing.assert_allclose(whole[:, :4], part, rtol=1e-5, atol=1e-7)


def test_no_backward_pass_reaches_a_parameter_or_the_whole_vocabulary(model: Any) -> None:
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    try:
        importance(model, PROMPT, ANSWER, chunk_tokens=3)
    finally:
        hook.remove()
    assert seen == [3, 3, 1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_that_want_gradients_or_are_not_float32_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="frozen float32"):
        importance(tiny_model(tiny_tokenizer()), PROMPT, ANSWER)
    with pytest.raises(ValueError, match="frozen float32"):
        importance(tiny_model(tiny_tokenizer()).bfloat16().requires_grad_(False), PROMPT, ANSWER)
    with pytest.raises(ValueError, match="both need one"):
        importance(model, PROMPT, ANSWER[:0])


def test_the_greedy_answer_is_the_most_likely_token_each_time(model: Any) -> None:
    answer = greedy_answer(model, PROMPT, [2], 6)
    ids = torch.from_numpy(np.concatenate([PROMPT, answer]).astype(np.int64))
    best = model(ids[None]).logits[0].argmax(-1)[PROMPT.size - 1 : -1]
    assert best.tolist() == answer.tolist()
