"""The policy as the learner runs it: a packed row in, log-probs of the wanted tokens out.

Attention goes span by span through ``packed_attention``, on every device; no flash-attn (whose
variable-length kernels cannot share one prompt among siblings). Knows no loss and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learners import packed_attention
from learners.packing import Span
from learners.target_logprobs import target_logprobs
from safeladder.errors import ConfigError, EnvironmentUnfitError

VALUE_HEAD = "value_head.safetensors"
HEAD_CHUNK_TOKENS = 1024
"""Wanted tokens whose [tokens, vocabulary] logits exist at a time."""


class PackedPolicy(nn.Module):
    """Wraps a causal language model; the head runs inside ``forward``, where ZeRO-3 has gathered
    its weights, and only at the wanted positions. ``value_head`` maps a hidden state to one number:
    the return that the policy expects before it samples the token."""

    def __init__(
        self, model: PreTrainedModel, temperature: float, value_head: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.value_head = value_head

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        spans: Sequence[Span],
        logit_index: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """[L] tokens, [L] positions, the spans that they form, [N] input index and [N] target ids
        to [N] float32 log-probs of logits / temperature; with a value head [2, N], log-probs and
        values (one tensor, since ZeRO's hooks look at tensors)."""
        hidden = self.model.get_decoder()(
            input_ids=tokens[None],
            position_ids=positions[None],
            spans=spans,
            use_cache=False,
        ).last_hidden_state[0]
        states = hidden[logit_index]
        logprobs = self._logprobs(states, targets)
        if self.value_head is None:
            return logprobs
        return torch.stack([logprobs, self.value_head(states)[:, 0].float()])

    def _logprobs(self, states: Tensor, targets: Tensor) -> Tensor:
        wanted = torch.split(states, HEAD_CHUNK_TOKENS)
        chunks = list(zip(wanted, torch.split(targets, HEAD_CHUNK_TOKENS), strict=True))
        if len(chunks) == 1 or not torch.is_grad_enabled():
            return torch.cat([self._head(*chunk) for chunk in chunks])
        return torch.cat([checkpoint(self._head, *chunk, use_reentrant=False) for chunk in chunks])

    def _head(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.get_output_embeddings()(hidden).float()
        if self.temperature != 1:
            logits = logits / self.temperature
        return target_logprobs(logits, targets)


def load_policy(
    path: Path,
    *,
    dtype: torch.dtype,
    temperature: float,
    train_last_layers: int | None,
    gradient_checkpointing: bool,
    value_head: bool = False,
) -> PackedPolicy:
    """Load a causal language model in Hugging Face layout, freeze what is not trained.

    Dropout is off: a policy must price its tokens as the engine did. Raises
    ``EnvironmentUnfitError`` if the folder holds no such model, or one that cannot be packed,
    ``ConfigError`` if it has fewer layers than asked for.
    """
    if not (path / "config.json").is_file():
        raise EnvironmentUnfitError(f"model.path {path} holds no config.json")
    config = AutoConfig.from_pretrained(path)
    for key in vars(config):
        if key.endswith(("dropout", "pdrop")):
            setattr(config, key, 0.0)
    packed_attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=dtype,
        attn_implementation=packed_attention.NAME,
        use_safetensors=True,
    )
    if not model.is_backend_compatible():
        raise EnvironmentUnfitError(
            f"{type(model).__name__} of {path} brings an attention of its own, which cannot keep "
            "the sequences of a packed row apart; train a model that takes transformers' registry "
            "of attention functions, such as Llama or Qwen"
        )
    _freeze(model, train_last_layers)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return PackedPolicy(model, temperature, load_value_head(path, model) if value_head else None)


def load_value_head(path: Path, model: PreTrainedModel) -> nn.Linear:
    """The value head beside the model's weights, else one of zeros, which expects nothing."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=model.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if (path / VALUE_HEAD).is_file():
        head.load_state_dict(load_file(path / VALUE_HEAD))
    return head


def _freeze(model: PreTrainedModel, train_last_layers: int | None) -> None:
    """Leave gradients only to the last k decoder layers and the final norm; None leaves all.

    Frozen layers at the bottom then keep no activations: autograd starts at the first trained one.
    """
    if train_last_layers is None:
        return
    decoder = model.get_decoder()
    if train_last_layers > len(decoder.layers):
        raise ConfigError(
            f"learner.train_last_layers is {train_last_layers}, but the model has "
            f"{len(decoder.layers)} layers"
        )
    model.requires_grad_(False)
    decoder.layers[-train_last_layers:].requires_grad_(True)
    decoder.norm.requires_grad_(True)


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint once, under its Hugging Face name: parameters (a tied head
    counts as the embedding), then persistent buffers."""
    yield from model.named_parameters()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = model.state_dict().keys() - parameters.keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
