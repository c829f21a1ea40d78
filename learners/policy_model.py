"""The policy as the learner runs it: a packed row in, log-probs of the wanted tokens out.

Attention goes span by span through ``packed_attention``, on every device; no flash-attn (whose
variable-length kernels cannot share one prompt among siblings). Knows no loss and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel

from learners import packed_attention
from learners.packing import PackedRow, Span
from learners.target_logprobs import target_logprobs
from learners.vision_tower import FrozenVision
from safeladder.errors import ConfigError, EnvironmentUnfitError
from vision.family import family_of
from vision.sequences import model_class

VALUE_HEAD = "value_head.safetensors"
HEAD_CHUNK_TOKENS = 1024
"""Wanted tokens whose [tokens, vocabulary] logits exist at a time."""


class PackedPolicy(nn.Module):
    """Wraps a causal language model; the head runs inside ``forward``, where ZeRO-3 has gathered
    its weights, and only at the wanted positions. ``value_head`` maps a hidden state to one number:
    the return that the policy expects before it samples the token."""

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        value_head: nn.Linear | None = None,
        vision: FrozenVision | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.value_head = value_head
        self.vision = vision

    def inputs(self, row: PackedRow, device: torch.device | str) -> dict[str, Any]:
        """The arguments of ``forward`` for a row, on the device."""

        def to(array: np.ndarray[Any, Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device).long()

        found = {
            "tokens": to(row.tokens),
            "positions": to(row.positions if self.vision is None else self.vision.positions(row)),
            "spans": row.spans,
            "logit_index": to(row.logit_index),
            "targets": to(row.targets),
        }
        if self.vision is not None and row.images:
            found |= {
                "places": to(self.vision.places(row)), "features": self.vision.features(row),
            }  # fmt: skip
        return found

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        spans: Sequence[Span],
        logit_index: Tensor,
        targets: Tensor,
        places: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """[L] tokens, [L] or [axes, L] positions, the spans that they form, [N] input index and
        [N] target ids to [N] float32 log-probs of logits / temperature; with a value head [2, N],
        log-probs and values (one tensor, since ZeRO's hooks look at tensors). The embeddings of
        the tokens at ``places`` [K] are ``features`` [K, H]."""
        shown = {"input_ids": tokens[None]}
        if places is not None and features is not None:
            embeds = self.model.get_input_embeddings()(tokens[None])
            where = (torch.zeros_like(places), places)
            shown = {"inputs_embeds": embeds.index_put(where, features.to(embeds.dtype))}
        hidden = self.model.get_decoder()(
            **shown,
            position_ids=positions[None] if positions.ndim == 1 else positions[:, None],
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
    family = family_of(path)
    packed: str | dict[str, str] = packed_attention.NAME
    if family is not None:  # the tower sees images one by one, with attention of its own
        packed = {"text_config": packed_attention.NAME, "vision_config": "sdpa"}
    model = model_class(path).from_pretrained(
        path, config=config, dtype=dtype, attn_implementation=packed, use_safetensors=True
    )
    if not model.is_backend_compatible():
        raise EnvironmentUnfitError(
            f"{type(model).__name__} of {path} brings an attention of its own, which cannot keep "
            "the sequences of a packed row apart; train a model that takes transformers' registry "
            "of attention functions, such as Llama or Qwen"
        )
    _freeze(model, train_last_layers)
    vision = None if family is None else FrozenVision(family, model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    head = load_value_head(path, model) if value_head else None
    return PackedPolicy(model, temperature, head, vision)


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
