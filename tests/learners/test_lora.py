"""Adapters beside frozen weights: merged they are the policy that the learner runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from learners.lora import ADAPTER, Exported, exported, load_adapters
from learners.packing import pack
from learners.policy_model import PackedPolicy, load_policy, named_weights
from learners.supervised import SftRow
from safeladder.config import LoraConfig
from safeladder.errors import ConfigError, NotResumableError
from tests.tiny_model import save_tiny_model

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def load(
    path: Path,
    lora: LoraConfig | None = LORA,
    dtype: torch.dtype = torch.float32,
    last: int | None = None,
    resume_from: Path | None = None,
) -> PackedPolicy:
    return load_policy(
        path,
        dtype=dtype,
        temperature=1.0,
        train_last_layers=last,
        gradient_checkpointing=False,
        lora=lora,
        resume_from=resume_from,
    )


def trained(policy: PackedPolicy) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in policy.model.named_parameters() if p.requires_grad}


def moved(policy: PackedPolicy) -> PackedPolicy:
    """With adapters that do something."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trained(policy).values():
            parameter.normal_(0, 0.1)
    return policy


def weights(policy: PackedPolicy) -> dict[str, Exported]:
    found = exported(named_weights(policy.model), policy.model)
    return {one.name: one for one in found}


def logprobs(policy: PackedPolicy) -> Tensor:
    row = SftRow(
        prompt_tokens=np.array([1, 70, 71], np.int32), tokens=np.array([80, 81, 2], np.int32)
    )
    ((packed,),) = pack([row], ranks=1, budget=64)
    found: Tensor = policy(**policy.inputs(packed, "cpu"))
    return found


def merged(policy: PackedPolicy) -> dict[str, Tensor]:
    return {
        name: one.adapter.merged(one.weight)[0] if one.adapter else one.weight.detach()
        for name, one in weights(policy).items()
    }


def test_at_the_start_the_policy_is_the_base_model(model: Path) -> None:
    torch.testing.assert_close(logprobs(load(model)), logprobs(load(model, None)))


def test_merged_weights_are_the_policy_under_the_names_of_the_base_model(model: Path) -> None:
    policy, plain = moved(load(model)), load(model, None)
    assert (logprobs(policy) - logprobs(plain)).abs().max() > 0.01
    found = merged(policy)
    assert list(found) == list(weights(plain))
    plain.model.load_state_dict(found, strict=False)
    torch.testing.assert_close(logprobs(policy), logprobs(plain), atol=1e-5, rtol=1e-5)


def test_merging_leaves_the_learners_weights_as_they_are(model: Path) -> None:
    policy = moved(load(model))
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    merged(policy)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_only_adapters_of_the_chosen_layers_are_trained(model: Path) -> None:
    two = LoraConfig(rank=2, target=("q_proj", "down_proj"))
    names = {name.removesuffix(".default.weight") for name in trained(load(model, two, last=1))}
    layer = "model.layers.2"
    assert names == {
        f"{layer}.{part}.{which}"
        for part in ("self_attn.q_proj", "mlp.down_proj")
        for which in ("lora_A", "lora_B")
    }
    assert len(trained(load(model))) == 3 * 7 * 2, "all-linear has no output embedding"


def test_the_sum_is_rounded_once_and_by_how_much_is_told(model: Path) -> None:
    one = weights(moved(load(model, dtype=torch.bfloat16)))["model.layers.0.mlp.up_proj.weight"]
    assert one.adapter is not None
    whole, error = one.adapter.merged(one.weight)
    exact = one.weight.float() + 2.0 * (one.adapter.b.float() @ one.adapter.a.float())
    assert whole.dtype == torch.bfloat16
    assert torch.equal(whole, exact.bfloat16())
    assert error == pytest.approx((whole.float() - exact).abs().max().item())
    assert 0 < error < 0.01


def test_a_target_that_names_no_layer_is_refused_with_those_that_there_are(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"'query' is no linear layer .* it has down_proj, gate"):
        load(model, LoraConfig(target=("q_proj", "query")))


def test_a_checkpoint_gives_back_the_adapters_over_the_base(model: Path, tmp_path: Path) -> None:
    first = moved(load(model))
    save_file({n: p.detach() for n, p in trained(first).items()}, tmp_path / ADAPTER)
    again = load(model, resume_from=tmp_path)
    assert torch.equal(logprobs(again), logprobs(first))
    with pytest.raises(NotResumableError, match="holds other adapters than"):
        load_adapters(load(model, LoraConfig(rank=2)).model, tmp_path)
    with pytest.raises(NotResumableError, match=r"was trained without learner\.lora"):
        load_adapters(again.model, tmp_path / "elsewhere")
