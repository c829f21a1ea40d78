"""Outcomes of a row's constraints to one number, and the number that junk would earn.

For weights w, outcomes c in {0, 1}, a gate g in {0, 1} and 0 <= a <= 1:

    r = g * (a * mean_w(c) + (1 - a) * all(c)) - floor

An outcome of None (the rule crashed) is masked: it is neither 0 nor 1, and has no weight. ``floor``
is what the best of three fixed texts without content earns on the same row, ungated: "less than",
"no comma" and "forbidden words" are free. It is the same for all answers to a prompt, so it cancels
wherever rewards are compared within a group.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from rewards.constraints.port import Reading
from rewards.constraints.rows import Stated

log = logging.getLogger(__name__)

Outcomes = tuple[bool | None, ...]
"""One for each constraint of a row, in its order; None is masked."""

STUBS = ("x", ".", '""')
"""Texts that say nothing; on PBIF's rows they pass 31 to 46 % of the published checks."""
MIN_LETTERS = 8
"""Least letters and digits of an answer: ``My answer is no.`` has 12."""
MIN_DIFFERENT = 4
"""Least different ones among them."""
MARKS = {True: "+", False: "-", None: "?"}
_MARKS = re.compile(r"[+\-?]+(?= |$)")


class MaskedError(ValueError):
    """More than half of the constraints have no outcome: the sample is to be dropped."""


def check(constraints: Sequence[Stated], answer: str, reading: Reading) -> Outcomes:
    """Whether an answer meets each constraint; a blank one meets none."""
    if not answer.strip():
        return (False,) * len(constraints)
    return tuple(_outcome(one, answer, reading) for one in constraints)


def _outcome(one: Stated, answer: str, reading: Reading) -> bool | None:
    try:
        return bool(one.is_met(answer, reading))
    except Exception:  # the decision: a crash is no outcome
        log.warning("%s: its rule crashed; the constraint is masked", one.id, exc_info=True)
        return None


def says_something(answer: str, min_letters: int = MIN_LETTERS) -> bool:
    """The gate: whether an answer is more than a stub.

    >>> says_something('""'), says_something("xxxxxxxxxxxx"), says_something("My answer is no.")
    (False, False, True)
    """
    letters = [char for char in answer.casefold() if char.isalnum()]
    return len(letters) >= min_letters and len(set(letters)) >= min(MIN_DIFFERENT, min_letters)


def blend(constraints: Sequence[Stated], outcomes: Outcomes, mean_share: float) -> float:
    """a * mean_w(c) + (1 - a) * all(c) over what is not masked, in [0, 1]. Raises ``MaskedError``.

    >>> from rewards.constraints.rows import stated
    >>> row = stated([{"id": "punctuation:no_comma"}, {"id": "startend:quotation", "weight": 3.0}])
    >>> blend(row, (True, False), 1.0), blend(row, (True, None), 0.5)
    (0.25, 1.0)
    """
    known = [(one.weight, met) for one, met in zip(constraints, outcomes, strict=True)
             if met is not None]  # fmt: skip
    if 2 * len(known) < len(outcomes):
        raise MaskedError(f"{len(outcomes) - len(known)} of {len(outcomes)} rules crashed")
    mean = sum(weight for weight, met in known if met) / sum(weight for weight, _ in known)
    return mean_share * mean + (1 - mean_share) * all(met for _, met in known)


def reward_floor(constraints: Sequence[Stated], reading: Reading, mean_share: float) -> float:
    """What the best stub earns; 0 where the rules crash on all of them."""
    earned = [0.0]
    for stub in STUBS:
        try:
            earned.append(blend(constraints, check(constraints, stub, reading), mean_share))
        except MaskedError:
            continue
    return max(earned)


def marks(outcomes: Outcomes) -> str:
    """Outcomes as text: ``+`` met, ``-`` missed, ``?`` masked."""
    return "".join(MARKS[met] for met in outcomes)


def read_marks(evidence: str | None) -> Outcomes | None:
    """The outcomes at the beginning of a verdict's evidence; None if it does not begin with them.

    >>> read_marks("++-? floor 0.25"), read_marks("a constraint is {id, kwargs, weight}")
    ((True, True, False, None), None)
    """
    found = _MARKS.match(evidence or "")
    if found is None:
        return None
    outcomes = {mark: met for met, mark in MARKS.items()}
    return tuple(outcomes[mark] for mark in found[0])
