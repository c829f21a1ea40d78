"""Low-rank adapters: injected by peft, merged for everyone who is not the learner.

The learner keeps the base weights frozen and as they are. Whoever asks for a weight under its
Hugging Face name (a publication, a checkpoint) gets W + scale · B·A, added up in float32 and
rounded once to the dtype of W. The base policy is the one with the adapters off, never held twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from safeladder.config import LoraConfig
from safeladder.errors import ConfigError, NotResumableError

ADAPTER = "adapter.safetensors"
NAME = "default"
"""peft's name of the one adapter."""
BASE = ".base_layer"
"""What peft puts into the name of a weight that has an adapter."""


class Adapter(NamedTuple):
    """What is added to a weight [O, I]."""

    a: Tensor
    """[R, I]"""
    b: Tensor
    """[O, R]"""
    scale: float

    @torch.no_grad()
    def merged(self, weight: Tensor) -> tuple[Tensor, float]:
        """The sum in the weight's dtype, as a copy on the CPU, and the largest distance by which
        rounding to that dtype moved an element."""
        exact = weight.float() + self.scale * (self.b.float() @ self.a.float())
        rounded = exact.to(weight.dtype)
        return rounded.cpu(), float((rounded.float() - exact).abs().max())


class Exported(NamedTuple):
    """A weight as others know it."""

    name: str
    """Of Hugging Face."""
    weight: Tensor
    adapter: Adapter | None = None

    @property
    def parts(self) -> list[Tensor]:
        """All tensors that it is made of."""
        return [self.weight, *(() if self.adapter is None else (self.adapter.a, self.adapter.b))]


def add_adapters(model: PreTrainedModel, lora: LoraConfig, train_last_layers: int | None) -> None:
    """Freeze the model and put adapters onto its decoder, or onto the last k layers of it.

    B is zero: the policy is the base model. Raises ``ConfigError`` for a target that names nothing.
    """
    import peft

    names = _targets(model, lora, train_last_layers)
    model.requires_grad_(False)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, bias="none"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on tied embeddings, which get no adapter
        peft.inject_adapter_in_model(settings, model, adapter_name=NAME)


def load_adapters(model: PreTrainedModel, checkpoint: Path) -> None:
    """Take the adapters of a checkpoint. Raises ``NotResumableError`` if it has others, or none."""
    try:
        found = load_file(checkpoint / ADAPTER)
    except FileNotFoundError:
        raise NotResumableError(
            f"{checkpoint} has no {ADAPTER}: it was trained without learner.lora; resume with the "
            "config it had, or start from it as model.path"
        ) from None
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: tuple(p.shape) for name, p in own.items()}
    if shapes != {name: tuple(t.shape) for name, t in found.items()}:
        raise NotResumableError(
            f"{checkpoint / ADAPTER} holds other adapters than learner.lora describes; resume with "
            "the rank and target it had"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])


def exported(named: Iterator[tuple[str, Tensor]], model: PreTrainedModel) -> Iterator[Exported]:
    """Weights of a model under the names that they have without adapters."""
    adapters = dict(_adapters(model))
    for name, weight in named:
        if ".lora_" not in name:
            plain = name.replace(BASE, "")
            yield Exported(plain, weight, adapters.get(name))


def _adapters(model: PreTrainedModel) -> Iterator[tuple[str, Adapter]]:
    """Name of each weight that has an adapter, as the model has it."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and NAME in module.lora_A:
            yield (
                f"{name}{BASE}.weight",
                Adapter(
                    module.lora_A[NAME].weight, module.lora_B[NAME].weight, module.scaling[NAME]
                ),
            )


def _targets(model: PreTrainedModel, lora: LoraConfig, last: int | None) -> list[str]:
    layers = model.get_decoder().layers
    chosen = set(layers if last is None else layers[-last:])
    linear = [
        f"{prefix}.{name}"
        for prefix, layer in model.named_modules()
        if layer in chosen
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    if lora.target == "all-linear":
        return linear
    there = {name.rpartition(".")[2] for name in linear}
    for target in lora.target:
        if target not in there:
            raise ConfigError(
                f"learner.lora.target: {target!r} is no linear layer of the model's decoder; it "
                f"has {', '.join(sorted(there))}"
            )
    return [name for name in linear if name.rpartition(".")[2] in lora.target]
