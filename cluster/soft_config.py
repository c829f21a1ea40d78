"""What ``safeladder compose soft`` is told: one YAML file, checked before any model is loaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Self

from pydantic import model_validator

from cluster.model_source import JudgeSource, ModelSource
from curricula.constraint_sets import draw_types
from rewards.constraints.vocabulary import HARD, SOFT
from safeladder.config_section import Flag, NonNegativeInt, PositiveInt, Section


class SoftConfig(Section):
    """What ``safeladder compose soft`` is told."""

    seeds: Path
    """JSON lines with a prompt each: ``prompt``, ``messages``, or ``instruction`` and ``input``."""
    out: Path
    """Folder of the results; one that is there already is gone on with."""
    seed: NonNegativeInt = 0
    """Of all draws."""
    limit: PositiveInt | None = None
    """The first so many seeds only."""
    num_constraints: PositiveInt = 5
    """Constraints of an instruction."""
    soft_only: Flag = False
    """Draw from the soft types only; else from all types alike."""
    seeds_at_once: PositiveInt = 16
    """Seeds under way."""
    max_new_tokens: PositiveInt = 512
    """Length limit of an answer."""
    writer: ModelSource
    """Who answers."""
    rewriter: ModelSource | None = None
    """Who writes soft constraints; null is the writer."""
    judge: JudgeSource
    """Who compares two answers."""
    rewriter_template: Path | None = None
    """A prompt of your own; null is ``curricula/soft_rewriter.yaml``."""
    judge_template: Path | None = None
    """A prompt of your own; null is ``rewards/pairwise/default.yaml``."""
    system_prompt: str | None = None
    """Of the writer, and of the rows that come out."""

    @property
    def types(self) -> tuple[str, ...]:
        """Ids that constraints are drawn from."""
        return tuple(SOFT) if self.soft_only else (*HARD, *SOFT)

    @model_validator(mode="after")
    def _so_many_can_stand_together(self) -> Self:
        try:
            draw_types(self.num_constraints, random.Random(0), self.types)
        except ValueError as error:
            raise ValueError(f"num_constraints: {error}; lower it") from None
        return self

    @property
    def models(self) -> dict[str, ModelSource]:
        """Role → the model that plays it."""
        rewriter = self.rewriter or self.writer
        return {"writer": self.writer, "rewriter": rewriter, "judge": self.judge}
