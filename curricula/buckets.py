"""Which bucket a prompt is in, by a column or by its predicted difficulty, of what kind it is, and
which others belong to it.

A label without any value in the column has no buckets: its prompts are asked in every stage.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from curricula.estimates import Kind, Rows, Shares
from safeladder.curriculum_config import DIFFICULTY, CurriculumConfig
from safeladder.records import Prompt

NO_BUCKET = -1

BucketOfRow = npt.NDArray[np.int16]
"""[rows] index of the bucket, easy ones first; ``NO_BUCKET`` for those without."""


class PromptError(ValueError):
    """A prompt that a curriculum cannot place. ``row`` counts from 0."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def bucket_names(config: CurriculumConfig) -> tuple[str, ...]:
    """Names of the buckets, easy ones first; none without ``bucket_by``."""
    if not config.boundaries:
        return ()
    return (*(f"to {b:g}" for b in config.boundaries), f"above {config.boundaries[-1]:g}")


def column_buckets(config: CurriculumConfig, prompts: Sequence[Prompt]) -> BucketOfRow:
    """Buckets by a column of ``meta``. Raises ``PromptError``."""
    buckets = np.full(len(prompts), NO_BUCKET, np.int16)
    column = config.bucket_by
    if column is None or column == DIFFICULTY:
        return buckets
    labels: dict[str, bool] = {}
    """Label → whether its rows have the column: the first says so."""
    for row, prompt in enumerate(prompts):
        value = prompt.meta.get(column)
        if labels.setdefault(prompt.route, value is not None) != (value is not None):
            raise PromptError(
                row,
                f"column {column}: some rows of the label {prompt.route!r} have it and some do "
                "not; `curriculum.bucket_by` needs it in all of them or in none",
            )
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PromptError(row, f"column {column}: must be a number, not {value!r}")
            buckets[row] = bisect_left(config.boundaries, value)
    _require_column(column, "bucket_by", prompts)
    return buckets


def _require_column(column: str, key: str, prompts: Sequence[Prompt]) -> None:
    if all(prompt.meta.get(column) is None for prompt in prompts):
        raise PromptError(
            0, f"column {column} is missing here and in every other row; check `curriculum.{key}`"
        )


def difficulty_buckets(config: CurriculumConfig, predicted: Shares) -> BucketOfRow:
    """Buckets by 1 less the predicted share of passes."""
    return np.searchsorted(config.boundaries, 1 - predicted, side="left").astype(np.int16)


def partners(config: CurriculumConfig, prompts: Sequence[Prompt]) -> dict[int, tuple[int, ...]]:
    """Row → the others of its pair, in order of the data; rows that stand alone are left out.
    Raises ``PromptError`` for a pair of two labels."""
    if config.together is None:
        return {}
    _require_column(config.together, "together", prompts)
    sets: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        value = prompt.meta.get(config.together)
        if value is not None:
            rows = sets.setdefault(str(value), [])
            rows.append(row)
            if prompts[rows[0]].route != prompt.route:
                raise PromptError(
                    row,
                    f"column {config.together}: {value!r} also stands in a row of the label "
                    f"{prompts[rows[0]].route!r}; what is asked together has one label",
                )
    pairs = (rows for rows in sets.values() if len(rows) > 1)
    return {row: tuple(other for other in rows if other != row) for rows in pairs for row in rows}


def kinds_of(
    config: CurriculumConfig, prompts: Sequence[Prompt], buckets: BucketOfRow
) -> tuple[list[Kind], Rows]:
    """Each distinct kind once, and the index of every row's. Raises ``PromptError``."""
    if config.types is not None:
        _require_column(config.types, "types", prompts)
    names = bucket_names(config)
    numbers: dict[Kind, int] = {}
    kind_of = np.empty(len(prompts), np.intp)
    for row, prompt in enumerate(prompts):
        bucket = "" if buckets[row] == NO_BUCKET else names[buckets[row]]
        types = tuple(sorted(types_of(config, row, prompt.meta)))
        kind = Kind(prompt.route, bucket, types)
        kind_of[row] = numbers.setdefault(kind, len(numbers))
    return list(numbers), kind_of


def types_of(config: CurriculumConfig, row: int, meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Types of a prompt, in its order; none without the column. Raises ``PromptError``."""
    if config.types is None or meta.get(config.types) is None:
        return ()
    value = meta[config.types]
    if isinstance(value, list) and value:
        found = [one.get("type") if isinstance(one, dict) else one for one in value]
        named = [one for one in found if isinstance(one, str)]
        if len(named) == len(found):
            return tuple(named)
    raise PromptError(
        row,
        f"column {config.types}: `curriculum.types` needs a list of names, or of maps with a "
        f"`type`, not {value!r}",
    )
