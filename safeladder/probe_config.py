"""The parts about held-out probes while RL goes on: ``probes``, ``tripwires``, ``exit``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import Name, PositiveInt, PositiveShare, Section, Share
from safeladder.data_config import Source


class ProbeSet(Section):
    """Held-out prompts, and the principle that scores the answers to them."""

    data: tuple[Source, ...] = Field(min_length=1)
    """Sources of prompts, as in ``data.held_out``; never trained on."""
    principle: Name
    """Principle whose mean score is the value of the probe."""
    limit: PositiveInt | None = None
    """Ask the first so many prompts only."""


class ProbesConfig(Section):
    """Greedy answers of the policy to held-out prompts, asked beside the training."""

    every_steps: PositiveInt = 10
    """Steps between two rounds. One more is asked before the first step."""
    sets: dict[Name, ProbeSet] = Field(default={})
    """Probe → its prompts and its principle."""


class TripwireConfig(Section):
    """What a fall of a probe leads to."""

    probe: Name
    """One of ``probes.sets``."""
    at_least: Share | None = None
    """Lowest value that is borne."""
    max_drop: PositiveShare | None = None
    """Largest fall that is borne, below the value at the start of the run."""
    action: Literal["pause", "rollback", "fail"] = "pause"
    """``pause`` ends the run in order, with a checkpoint, until somebody resumes it. ``rollback``
    goes on from the last checkpoint from before the fall, once in a run, and then pauses. ``fail``
    ends the run for good."""

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_least is None) == (self.max_drop is None):
            raise ValueError("give one bound: `at_least`, or `max_drop` below the start of the run")
        return self


class TargetConfig(Section):
    """The run ends once a probe is so high."""

    probe: Name
    """One of ``probes.sets``."""
    at_least: Share
    """Value that ends the run."""


class PlateauConfig(Section):
    """The run ends once a probe does not rise any more."""

    probe: Name
    """One of ``probes.sets``."""
    patience: PositiveInt
    """Rounds in a row that bring no better value."""
    min_delta: Share = 0.0
    """A value is better if it is higher than the best one by more than this."""


class ExitConfig(Section):
    """When a run ends before ``run.steps``: cleanly, after a step, as if it had been the last."""

    target: TargetConfig | None = None
    """A value that is enough."""
    plateau: PlateauConfig | None = None
    """A value that does not rise any more."""


def require_probes(
    probes: ProbesConfig,
    tripwires: Mapping[str, TripwireConfig],
    ends: ExitConfig,
    principles: Collection[str],
    stage: str,
) -> None:
    """Raise ``ValueError`` for a name that is none, and outside RL, where nothing is asked."""
    if stage != "rl" and (probes.sets or tripwires or ends != ExitConfig()):
        raise ValueError(
            f"probes, tripwires and exit belong to stage: rl, not to stage: {stage}; remove them"
        )
    for name, probe in probes.sets.items():
        if probe.principle not in principles:
            raise ValueError(
                f"probes.sets.{name}.principle names {probe.principle!r}, which is not in "
                f"`principles` ({', '.join(sorted(principles)) or 'empty'})"
            )
    asked = {f"tripwires.{name}.probe": tripwire.probe for name, tripwire in tripwires.items()}
    if ends.target is not None:
        asked["exit.target.probe"] = ends.target.probe
    if ends.plateau is not None:
        asked["exit.plateau.probe"] = ends.plateau.probe
    for key, probe_name in asked.items():
        if probe_name not in probes.sets:
            there = ", ".join(sorted(probes.sets)) or "none"
            raise ValueError(f"{key} names {probe_name!r}, which is not in probes.sets ({there})")


def require_room_to_roll_back(
    probes: ProbesConfig,
    tripwires: Mapping[str, TripwireConfig],
    every_steps: int,
    keep: int,
    max_staleness: int,
) -> None:
    """Raise ``ValueError`` unless the checkpoint from before a fall is still there when the fall is
    seen: that is up to one round, and the steps that are taken while the round is answered, later.
    """
    if not any(tripwire.action == "rollback" for tripwire in tripwires.values()):
        return
    late = probes.every_steps + max_staleness + 1
    needed = -(-late // every_steps) + 1
    if keep < needed:
        raise ValueError(
            f"checkpoint.keep: {keep} is too few for a tripwire that rolls back: a fall may be "
            f"seen {late} steps late, so with checkpoint.every_steps: {every_steps} keep {needed}"
        )
