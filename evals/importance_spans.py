"""From the importance of tokens to that of constraints.

Finds which tokens of a rendered prompt belong to which constraint, and sums over them. PBIF does
not say how it went from tokens to constraints; what is summed here (``token_weights``) is ours. The
density (``token_density``) is what Wu et al. 2023 (arXiv 2310.00492) show for a token. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from safeladder.records import Floats

Array = npt.NDArray[np.float64]
Span = tuple[int, int]
"""First character, and the one after the last."""
NO_CONSTRAINT = -1
EPS = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """How the density of a token is made; the defaults are those of PBIF's calls."""

    levels: int = 10
    """L: values are rounded up to so many steps."""
    threshold: int = 0
    """b: steps up to this count as 0. Wu et al. take 7, PBIF's calls 0."""
    power: float = 4.0
    """p of the norm that divides."""

    def __post_init__(self) -> None:
        if self.levels < 1 or not 0 <= self.threshold < self.levels or self.power < 1:
            raise ValueError(
                f"levels {self.levels}, threshold {self.threshold}, power {self.power}: levels "
                "must be >= 1, the threshold below them, the power >= 1"
            )


PBIF_DENSITY = Density()


def constraint_spans(text: str, constraints: Sequence[str]) -> list[Span]:
    """Where each constraint of a single-round instruction lies in the text of a conversation.

    The constraints stand in presented order, as they were joined into the instruction (". " between
    them and "." at the end). Raises ``ValueError`` unless that part is in the text exactly once.
    """
    joined = ". ".join(constraints) + "."
    if not constraints or text.count(joined) != 1:
        raise ValueError(
            f"the constraints stand in the rendered prompt {text.count(joined)} times, not once"
        )
    start = text.index(joined)
    spans = []
    for constraint in constraints:
        spans.append((start, start + len(constraint)))
        start += len(constraint) + 2
    return spans


def slot_of_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> npt.NDArray[np.int64]:
    """[P] slot of the constraint that each token belongs to, or ``NO_CONSTRAINT``. A token over an
    edge (a space, a stop) belongs to the constraint that it shares most characters with."""
    found = np.full(len(offsets), NO_CONSTRAINT, np.int64)
    for n, (start, end) in enumerate(offsets):
        shared = [min(end, last) - max(start, first) for first, last in spans]
        if shared and max(shared) > 0:
            found[n] = int(np.argmax(shared))
    return found


def normalized(importance: Floats) -> Array:
    """[P, M] positive part over its column's maximum: for each token of the answer, the prompt
    token that carries it most has 1."""
    positive = np.maximum(importance.astype(np.float64), 0)
    found: Array = positive / (positive.max(axis=0, keepdims=True) + EPS)
    return found


def token_weights(importance: Floats) -> Array:
    """[P] mean of ``normalized`` over the answer."""
    found: Array = normalized(importance).mean(axis=1)
    return found


def token_density(importance: Floats, options: Density = PBIF_DENSITY) -> Array:
    """[P] l1 norm over lp norm of a token's quantized importances along the answer: high for a
    token that matters all along, 1 for one that matters once, 0 for one that never does."""
    steps = np.ceil(options.levels * normalized(importance))
    steps[steps <= options.threshold] = 0
    norm = (steps**options.power).sum(axis=1) ** (1 / options.power)
    found: Array = np.divide(steps.sum(axis=1), norm, out=np.zeros_like(norm), where=norm > 0)
    return found


def by_constraint(
    weights: Array, slots: npt.NDArray[np.int64], num_constraints: int
) -> dict[str, Any]:
    """``share``: of all weight, that of tokens of constraints; ``slots``: for each slot the sum of
    its tokens' weight (``value``), its ``share`` of all weight and its number of ``tokens``."""
    total = float(weights.sum())
    values = [float(weights[slots == slot].sum()) for slot in range(num_constraints)]
    return {
        "share": sum(values) / total if total > 0 else None,
        "slots": [
            {
                "value": value,
                "share": value / total if total > 0 else None,
                "tokens": int((slots == slot).sum()),
            }
            for slot, value in enumerate(values)
        ],
    }
