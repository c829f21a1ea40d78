"""``curriculum``: what is asked next, by how hard it is for the policy of this moment."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import Decay, Name, PositiveInt, PositiveShare, Section, Share

DIFFICULTY = "difficulty"


class CurriculumConfig(Section):
    """Which prompts are asked when. A *bucket* holds prompts of like difficulty; a group *passes*
    by the share of its siblings to which all principles give ``pass_score`` or more."""

    schedule: Literal["none", "staged", "mixed", "adaptive"] = "none"
    """``none``: pass after pass. ``staged``: bucket after bucket, easy ones first. ``mixed``: all
    buckets, in proportion to their rows. ``adaptive``: prompts whose predicted share of passes lies
    in ``window``."""
    bucket_by: str | None = None
    """Column of ``meta`` with a number, such as ``num_constraints``; or ``difficulty``, which is 1
    less the predicted share of passes. Null has no buckets."""
    boundaries: tuple[Annotated[float, Field(allow_inf_nan=False, strict=True)], ...] = ()
    """Largest value of each bucket but the last, rising: [3] makes `to 3` and `above 3`."""
    stage_steps: PositiveInt | None = None
    """``staged`` goes on to the next bucket after so many steps."""
    advance_at: PositiveShare | None = None
    """``staged`` goes on as soon as the bucket passes so often."""
    window: tuple[Share, Share] = (0.2, 0.8)
    """``adaptive`` asks what is predicted to pass that often, bounds included."""
    rehearsal: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.1
    """Share of groups drawn from elsewhere: other buckets, or outside the window."""
    principles: tuple[Name, ...] = ()
    """Those that make a pass; empty takes all of the route."""
    pass_score: PositiveShare = 0.5
    """Lowest score of a pass."""
    decay: Decay = 0.99
    """An outcome of a policy that is v versions old counts decay^v, whenever it arrives. What is
    asked again every hundred steps needs 0.99 or more to be known by then."""
    types: str | None = None
    """Column of ``meta`` with a list of types, such as ``instruction_id_list``: combinations are
    then predicted by the product over their types. Verdicts of ``rewards.instructions`` tell of
    each type by itself."""
    together: str | None = None
    """Column of ``meta`` whose equal values are asked one directly after the other, such as
    ``pair``: two orders of the same constraints."""
    carried: Path | None = None
    """Estimates that an earlier run ended with (``safeladder curriculum RUN --state``)."""

    @model_validator(mode="after")
    def _is_a_schedule(self) -> Self:
        if any(low >= high for low, high in pairwise(self.boundaries)):
            raise ValueError("boundaries must rise")
        if self.bucket_by is None and self.boundaries:
            raise ValueError("boundaries need `bucket_by`: which number they bound")
        if self.bucket_by is not None and not self.boundaries:
            raise ValueError("bucket_by needs `boundaries`: where one bucket ends")
        is_share = all(0 < bound < 1 for bound in self.boundaries)
        if self.bucket_by == DIFFICULTY and not is_share:
            raise ValueError("boundaries of `difficulty` lie between 0 and 1")
        if self.bucket_by == DIFFICULTY and self.advance_at is not None:
            raise ValueError(
                "advance_at needs buckets by a column: prompts that pass leave those of difficulty"
            )
        if self.schedule == "staged":
            if self.bucket_by is None:
                raise ValueError("schedule: staged needs `bucket_by` and `boundaries`")
            if self.stage_steps is None and self.advance_at is None:
                raise ValueError("schedule: staged needs `stage_steps` or `advance_at`")
        if self.window[0] >= self.window[1]:
            raise ValueError("window is [low, high] with low below high")
        return self

    @model_validator(mode="after")
    def _stages_are_read(self) -> Self:
        is_set = self.stage_steps is not None or self.advance_at is not None
        if is_set and self.schedule != "staged":
            raise ValueError(
                f"stage_steps and advance_at do nothing with schedule: {self.schedule}; they are "
                "for staged"
            )
        return self
