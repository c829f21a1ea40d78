"""``learner``: the DeepSpeed ranks and their optimizer."""

from __future__ import annotations

from typing import Literal

from safeladder.config_section import (
    Decay,
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from safeladder.lora_config import LoraConfig as LoraConfig
from safeladder.objective_config import ObjectiveConfig


class LearnerConfig(Section):
    """The DeepSpeed ranks and their optimizer."""

    ranks: PositiveInt = 1
    """DeepSpeed processes, one Ray actor each."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    lr: PositiveFloat = 1e-6
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 0
    """Linear warm-up, then constant."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW moments."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Global clip of the gradient norm."""
    epochs: PositiveInt = 1
    """Passes over each batch (inner epochs)."""
    micro_batch_tokens: PositiveInt = 8192
    """Token budget of one packed row, prompts included."""
    train_last_layers: PositiveInt | None = None
    """Train only the last k decoder layers and the final norm; null trains everything."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights; with ``train_last_layers`` those of the last
    k decoder layers. They are published and saved merged."""
    gradient_checkpointing: Flag = False
    """Recompute activations in the backward pass."""
    step_deadline_s: PositiveFloat = 3600.0
    """A step that takes longer counts as a lost rank."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs reserved for each rank."""
    num_cpus: NonNegativeFloat = 1.0
    """Cores reserved for each rank."""
    objective: ObjectiveConfig = ObjectiveConfig()
