"""``checkpoint``, ``monitor`` and ``placement``: where a run lives, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from safeladder.config_section import Flag, NonNegativeInt, PositiveFloat, PositiveInt, Section


class CheckpointConfig(Section):
    """When state is written."""

    every_steps: PositiveInt = 20
    """A checkpoint is also written after the last step."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""


class MonitorConfig(Section):
    """Where metrics go."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """``auto`` is online with a key in the environment, else offline."""
    project: str = "safeladder"
    """W&B project."""
    samples_every: PositiveInt = 5
    """Steps between two tables of sample completions."""
    redact_samples: Flag = False
    """Leave prompt and response text out of tables and reports."""


class PlacementConfig(Section):
    """Which machine, cores and memory a role gets."""

    address: str | None = None
    """Ray address; null starts a local Ray that ends with the run."""
    rollout_cores: tuple[NonNegativeInt, ...] = ()
    """CPU cores of rollout, reference and verifier actors; empty leaves it to the system."""
    learner_cores: tuple[NonNegativeInt, ...] = ()
    """CPU cores of the learner."""
    threads_per_actor: PositiveInt = 1
    """OMP_NUM_THREADS of every actor."""
    object_store_gib: Annotated[float, Field(ge=0.08, allow_inf_nan=False, strict=True)] = 2.0
    """Size of a local Ray's object store; Ray starts none below 0.08."""
    start_deadline_s: PositiveFloat = 600.0
    """Longest wait for an actor to come up."""
