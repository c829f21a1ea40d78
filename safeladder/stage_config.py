"""``stage``, and what a stage that passes over rows of a file is told: ``sft``, ``preference`` and
``value_model``. Which of them a run is stands in ``Config.stage``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from safeladder.config_section import (
    Flag,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)

Stage = Literal["rl", "sft", "preference", "value_model"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False, strict=True)]
BelowOne = Annotated[float, Field(ge=0, lt=1, strict=True)]


class SftFilters(Section):
    """Which demonstrations are taken: a row is refused by the first of these that it fails. All are
    off unless they are set; what was refused, and why, stands in ``acceptance.json``."""

    format: Flag = False
    """Exactly one think block, with reasoning in it and an answer behind it."""
    language: Flag = False
    """Chain and answer keep the language of the question, Chinese or not."""
    max_repetition: Share | None = None
    """Largest share of word triples of the response that occurred before in it, such as 0.3."""
    verify: Flag = False
    """Every principle of the row's ``route`` gives the response ``min_score`` or more. Rows without
    a route pass; a verdict that is INVALID refuses the row and is counted by its cause."""
    min_score: Share = 0.5
    """Lowest score under ``verify``."""


class RowsConfig(Section):
    """What all stages have in common that pass over rows of a file."""

    data: tuple[Path, ...]
    """JSON-lines files of rows."""
    epochs: PositiveInt = 3
    """Passes over the rows."""
    lr: PositiveFloat = 1e-5
    """Peak learning rate of this stage; ``learner.lr`` is that of RL."""
    batch_size: PositiveInt = 8
    """Rows of one optimizer step."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Of the learning rate after the warm-up; ``cosine`` falls to 0 at the last step."""
    warmup_ratio: BelowOne = 0.1
    """Share of all steps in which the learning rate rises linearly."""
    validation_share: BelowOne = 0.1
    """Share of the rows that is not trained but measured, before and after."""


class SftConfig(RowsConfig):
    """Supervised training on demonstrations: the whole run with ``stage: sft``, else a short rung
    before RL that gives it its first gradient."""

    data: tuple[Path, ...]
    """JSON-lines files with ``prompt`` and ``response``; TRL's and LLaMA-Factory's columns are
    taken too (``docs/stages.md``)."""
    epochs: PositiveInt = 2
    """Passes over the rows."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate after the warm-up; ``cosine`` falls to 0 at the last step."""
    warmup_ratio: BelowOne = 0.0
    """Share of all steps in which the learning rate rises linearly."""
    validation_share: BelowOne = 0.0
    """Share of the rows that is not trained but measured, before and after; ``stage: sft`` only."""
    max_tokens: PositiveInt | None = None
    """Rows with more tokens, prompt and response together, are left out and counted; null is
    ``learner.micro_batch_tokens``."""
    filters: SftFilters = SftFilters()


class SelectionConfig(Section):
    """Which pairs of the files are trained, by a column that holds a number; a curriculum from easy
    to hard is a run for each part, the next started from the last one's checkpoint."""

    column: str = "num_constraints"
    """Column of the rows."""
    at_least: FiniteFloat | None = None
    """Lowest value that is trained; null is any."""
    at_most: FiniteFloat | None = None
    """Highest value that is trained; null is any."""
    rehearsal: BelowOne = 0.1
    """Share of the trained pairs that is drawn from the others, by ``run.seed``."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least or at_most, or leave `select` out to train all pairs")
        low, high = self.at_least, self.at_most
        if low is not None and high is not None and low > high:
            raise ValueError(f"at_least {low:g} is above at_most {high:g}, so no pair is between")
        return self

    def takes(self, value: float) -> bool:
        """Whether a row with this value in ``column`` is between the bounds."""
        is_above = self.at_least is None or value >= self.at_least
        return is_above and (self.at_most is None or value <= self.at_most)


class PreferenceConfig(RowsConfig):
    """DPO + gamma * SFT. Defaults are the published ones of FollowSoftConstraints, arXiv
    2501.04945: log-probs are summed in DPO and averaged over tokens in SFT."""

    data: tuple[Path, ...]
    """JSON-lines files with ``prompt``, ``chosen`` and ``rejected``; TRL's and LLaMA-Factory's
    columns are taken too (``docs/stages.md``)."""
    beta: PositiveFloat = 0.1
    """Scale of the log-ratios to the reference policy, which is the one that the stage starts
    from."""
    gamma: NonNegativeFloat = 1.0
    """Weight of the SFT term on the chosen answer; 0 is plain DPO."""
    lr: PositiveFloat = 5e-6
    """Peak learning rate of this stage."""
    select: SelectionConfig | None = None
    """Train a part of the pairs, such as the easy ones; null trains all."""
    until_accuracy: Share | None = None
    """End the stage after the first pass in which so large a share of the pairs had a positive
    margin, so that the policy decides how long a part is trained; null makes all ``epochs``."""
    cutoff: PositiveInt = 4096
    """Most tokens of a prompt with one of its answers. A longer answer is cut; a prompt that leaves
    no room for one is refused."""


class ValueModelConfig(RowsConfig):
    """A value model: the policy's layers with one head for each principle on the last token of a
    chain's prefix, trained on Monte-Carlo returns by squared error between logits."""

    data: tuple[Path, ...]
    """JSON-lines files with ``prompt``, ``prefix`` and ``returns`` (principle → mean score of the
    continuations, 0 to 1)."""
    principles: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Heads, in order. A row need not have a return for each."""
    head_lr: PositiveFloat = 1e-3
    """Peak learning rate of the heads, which start at zero."""
    clip: Annotated[float, Field(gt=0, lt=0.5, strict=True)] = 0.05
    """Returns are brought into [clip, 1 - clip], since the logit of 0 and 1 is not finite."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step."""

    @field_validator("principles")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} stands twice; each principle has one head")
        return names
