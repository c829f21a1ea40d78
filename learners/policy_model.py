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
from learners.lora import add_adapters, load_adapters
from learners.packing import PackedRow, Span
from learners.target_logprobs import target_logprobs
from learners.vision_tower import FrozenVision
from safeladder.config import LoraConfig
from safeladder.errors import ConfigError, EnvironmentUnfitError
from vision.family import family_of
from vision.sequences import model_class

VALUE_HEAD = "value_head.safetensors"
HEAD_CHUNK_TOKENS = 1024
"""Wanted tokens whose [tokens, vocabulary] logits exist at a time."""


class PackedPolicy(nn.Module):
    """Wraps a causal language model; the head runs inside ``forward``, where ZeRO-3 has gathered
    its weights, and only at the wanted positions. ``value_head`` maps a hidden state to one number,
    the return that the policy expects before it samples the token; with ``only_values``, which is a
    value model, to one for each principle."""

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        value_head: nn.Linear | None = None,
        vision: FrozenVision | None = None,
        *,
        only_values: bool = False,
    ) -> None:
        super().__init__()
        self.only_values = only_values
        self.model = model
        self.temperature = temperature
        self.value_head = value_head
        self.vision = vision

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of a checkpoint but the value head, also those of the vision tower, which
        is no part of ``model``. See ``named_weights`` of this module."""
        yield from named_weights(self.model)
        if self.vision is not None:
            yield from ((f"model.{name}", w) for name, w in named_weights(self.vision.tower))

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
        log-probs and values (one tensor, since ZeRO's hooks look at tensors), or [N, K]
        values alone. The embeddings of the tokens at ``places`` [I] are ``features`` [I, H]."""
        shown = {"input_ids": tokens[None]}
        if self.vision is not None:
            # Also without images: ZeRO-3 wants each rank's modules in one order.
            embeds = self.model.get_input_embeddings()(tokens[None])
            if places is not None and features is not None:
                where = (torch.zeros_like(places), places)
                embeds = embeds.index_put(where, features.to(embeds.dtype))
            shown = {"inputs_embeds": embeds}
        hidden = self.model.get_decoder()(
            **shown,
            position_ids=positions[None] if positions.ndim == 1 else positions[:, None],
            spans=spans,
            use_cache=False,
        ).last_hidden_state[0]
        states = hidden[logit_index]
        if self.only_values and self.value_head is not None:
            values: Tensor = self.value_head(states).float()
            return values
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
    value_heads: int = 0,
    only_values: bool = False,
    lora: LoraConfig | None = None,
    resume_from: Path | None = None,
) -> PackedPolicy:
    """Load a causal language model in Hugging Face layout, freeze what is not trained.

    The weights are those of a checkpoint, ``resume_from``, if given; with ``lora`` they stay those
    of ``path``, and the checkpoint has the adapters.

    Dropout is off: a policy must price its tokens as the engine did. Raises
    ``EnvironmentUnfitError`` if the folder holds no such model, or one that cannot be packed,
    ``ConfigError`` if it has fewer layers than asked for.
    """
    started_from, path = path, path if lora else resume_from or path
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
    if lora is not None:
        add_adapters(model, lora, train_last_layers)
        if resume_from is not None:
            load_adapters(model, resume_from)
    vision = None if family is None else FrozenVision(family, model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    head_path = resume_from or started_from
    head = load_value_head(head_path, model, value_heads) if value_heads else None
    if only_values:
        _freeze_output(model)
    return PackedPolicy(model, temperature, head, vision, only_values=only_values)


def load_value_head(path: Path, model: PreTrainedModel, outputs: int = 1) -> nn.Linear:
    """The value head beside the model's weights, else one of zeros, which expects nothing. Raises
    ``ConfigError`` if the one that is there has other outputs."""
    head = nn.Linear(model.config.get_text_config().hidden_size, outputs, dtype=model.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if (path / VALUE_HEAD).is_file():
        found = load_file(path / VALUE_HEAD)
        if found["weight"].shape != head.weight.shape:
            raise ConfigError(
                f"{path / VALUE_HEAD} has {found['weight'].shape[0]} heads, and {outputs} are "
                "wanted: it is of another kind of run; set model.path to the policy without them"
            )
        head.load_state_dict(found)
    return head


def _freeze_output(model: PreTrainedModel) -> None:
    """A value model predicts no token: an output embedding of its own would get no gradient."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is not given.weight:
        output.requires_grad_(False)


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


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint once, under its Hugging Face name: parameters (a tied head
    counts as the embedding), then persistent buffers."""
    yield from model.named_parameters()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    kept = model.state_dict().keys() - parameters.keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
