"""The packed policy prices every sequence as a plain forward pass of that sequence alone does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, PreTrainedModel

from learners import policy_model
from learners.packed_attention import packed_attention
from learners.packing import PackedRow, Span, pack
from learners.policy_model import PackedPolicy, load_policy, named_weights
from learners.target_logprobs import target_logprobs
from safeladder.errors import ConfigError, EnvironmentUnfitError
from tests.learners.ranks import VOCABULARY, make_tiny_model
from tests.learners.test_packing import Sample, sample

pytestmark = pytest.mark.engine

TEMPERATURE = 0.7


def load(folder: Path, last_layers: int | None = None, checkpointing: bool = False) -> PackedPolicy:
    return load_policy(
        folder,
        dtype=torch.float32,
        temperature=TEMPERATURE,
        train_last_layers=last_layers,
        gradient_checkpointing=checkpointing,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> PackedPolicy:
    return load(folder)


def random_samples() -> list[Sample]:
    random = np.random.default_rng(0)

    def ids(n: int) -> list[int]:
        return [int(i) for i in random.integers(1, VOCABULARY, n)]

    prompts = [ids(5), ids(1), ids(9)]
    return [sample(prompt, ids(n)) for prompt in prompts for n in (1, 4, 12, 4)]


def run(policy: PackedPolicy, row: PackedRow) -> torch.Tensor:
    tokens, positions, logit_index, targets = (
        torch.from_numpy(a).long()
        for a in (row.tokens, row.positions, row.logit_index, row.targets)
    )
    return policy(tokens, positions, row.spans, logit_index, targets)


@pytest.fixture(scope="module")
def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def price_alone(plain: PreTrainedModel, one: Sample) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([one.prompt_tokens, one.tokens])).long()
    with torch.no_grad():
        logits = plain(input_ids=ids[None]).logits[0, :-1].float() / TEMPERATURE
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[1:, None])[:, 0]
    return logprobs[one.prompt_tokens.size - 1 :]


def test_target_logprobs_have_values_and_gradients_of_a_log_softmax() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(6, 5, requires_grad=True)
    head = torch.randn(9, 5, requires_grad=True)
    targets, pull = torch.randint(0, 9, (6,)), torch.randn(6)
    plain = torch.log_softmax(3 * hidden @ head.T, -1).gather(-1, targets[:, None])[:, 0]
    found = target_logprobs(3 * hidden @ head.T, targets)
    assert torch.allclose(found, plain, atol=1e-5)
    for ours, theirs in zip(
        *(torch.autograd.grad((o * pull).sum(), (hidden, head)) for o in (found, plain)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_second_backward_through_spent_logits_is_refused() -> None:
    logits = torch.randn(2, 4, requires_grad=True) * 1
    found = target_logprobs(logits, torch.tensor([0, 3])).sum()
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"sliding_window": 7}, "a sequence of 8 tokens is longer than .* window of 7"),
        ({"softcap": 50.0}, "caps attention scores"),
        ({"s_aux": torch.zeros(2)}, "has sinks"),
    ],
)
def test_what_attention_by_spans_cannot_do_is_refused(asked: dict[str, Any], why: str) -> None:
    spans, row = [Span(5, 0), Span(3, 0), Span(2, 2)], torch.randn(1, 2, 10, 4)
    packed_attention(None, row, row, row, None, spans=spans, sliding_window=8)
    with pytest.raises(EnvironmentUnfitError, match=why):
        packed_attention(None, row, row, row, None, spans=spans, **asked)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_attention_by_spans_is_that_under_a_mask(key_heads: int) -> None:
    """Values and gradients, against one softmax over [L, L] scores."""
    torch.manual_seed(0)
    spans = [Span(5, 0), Span(3, 0), Span(1, 0), Span(1, 3), Span(7, 3)]
    starts = np.cumsum([0, *(span.length for span in spans)])
    total = int(starts[-1])
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for (length, prompt), start in zip(spans, starts, strict=False):
        end = start + length
        allowed[start:end, starts[prompt] : starts[prompt + 1]] = True
        allowed[start:end, start:end] = True
    query = torch.randn(1, 4, total, 8, requires_grad=True)
    key, value = (torch.randn(1, key_heads, total, 8, requires_grad=True) for _ in range(2))
    wide = [t.repeat_interleave(4 // key_heads, 1) for t in (key, value)]
    scores = 0.3 * query @ wide[0].transpose(2, 3)
    masked = scores.masked_fill(~allowed.tril(), -torch.inf)
    expected = (masked.softmax(-1) @ wide[1]).transpose(1, 2)
    found, _ = packed_attention(None, query, key, value, None, spans=spans, scaling=0.3)
    assert torch.allclose(found, expected, atol=1e-6)
    pull = torch.randn_like(found)
    for ours, theirs in zip(
        *(torch.autograd.grad((o * pull).sum(), (query, key, value)) for o in (found, expected)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("chunk", [1024, 7])
def test_packed_logprobs_equal_those_of_each_sequence_alone(
    policy: PackedPolicy, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(policy_model, "HEAD_CHUNK_TOKENS", chunk)
    samples = random_samples()
    alone = [price_alone(plain, s).numpy() for s in samples]
    for budget in (500, 40):
        for row in pack(samples, ranks=1, budget=budget)[0]:
            found = run(policy, row).detach().numpy()
            assert np.allclose(found, row.gather(alone), atol=1e-5)


def test_changing_one_sequence_changes_no_other(policy: PackedPolicy) -> None:
    samples = random_samples()
    [[row]] = pack(samples, ranks=1, budget=500)
    before = run(policy, row).detach().numpy()
    changed = 6
    samples[changed] = sample(samples[changed].prompt_tokens.tolist(), [3] * 12)
    [[row]] = pack(samples, ranks=1, budget=500)
    after = run(policy, row).detach().numpy()
    owner = np.concatenate([[p.sequence] * p.trained.size for p in row.pieces])
    assert np.array_equal(before[owner != changed], after[owner != changed])
    assert not np.allclose(before[owner == changed], after[owner == changed])


def test_the_gradient_is_the_same_in_chunks_and_with_checkpointing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [[row]] = pack(random_samples(), ranks=1, budget=500)

    def gradients(policy: PackedPolicy) -> dict[str, torch.Tensor]:
        run(policy, row).square().mean().backward()
        return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}

    plain = gradients(load(folder))
    monkeypatch.setattr(policy_model, "HEAD_CHUNK_TOKENS", 7)
    frugal = gradients(load(folder, checkpointing=True))
    assert plain.keys() == frugal.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, frugal[name], atol=1e-6), name


def test_only_the_last_layers_and_the_final_norm_get_gradients(folder: Path) -> None:
    policy = load(folder, last_layers=1)
    trained = {n for n, p in named_weights(policy.model) if p.requires_grad}
    assert trained == {
        n
        for n, _ in named_weights(policy.model)
        if n.startswith("model.layers.2.") or n == "model.norm.weight"
    }
    assert len(trained) > 5


def test_a_tied_head_is_named_once(policy: PackedPolicy) -> None:
    names = [n for n, _ in named_weights(policy.model)]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))


def test_a_missing_model_and_too_many_layers_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match=str(tmp_path)):
        load(tmp_path)
    with pytest.raises(ConfigError, match="the model has 3 layers"):
        load(folder, last_layers=4)


def test_a_model_that_cannot_keep_packed_sequences_apart_is_refused(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=11, hidden_size=8, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(EnvironmentUnfitError, match=r"Bloom.*attention of its own"):
        load(tmp_path)
