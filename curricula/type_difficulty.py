"""How hard each type of constraint is for the policy of this moment: pass rates by type.

    Acc_x = passes / outcomes of type x        Dff_x = softmax over types of (1 - Acc_x)

(arXiv 2502.17204.) Difficulty belongs to a type *and* a model, so there is no table of it here: it
is counted from verdicts. An outcome of version u weighs decay^(v - u) at version v, whenever it is
heard. Softmax keeps the order, so ranks need the rates alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from curricula.estimates import DecayedCount
from curricula.orders import Ranks

PRIOR = 0.5
PRIOR_OUTCOMES = 2.0
"""Outcomes that weigh as much as knowing nothing: a type seen once is not the hardest of all."""


class TypeDifficulty:
    """Counts of passes by type. Pure: the same outcomes in any order give the same rates."""

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {decay}")
        self._decay = decay
        self.version = 0
        """Newest version that was heard of."""
        self._counts: dict[str, DecayedCount] = {}

    def note(self, version: int, ids: Sequence[str], outcomes: Sequence[bool | None]) -> None:
        """Count the outcomes of one answer; a masked one (None) counts as nothing."""
        self.version = max(version, self.version)
        for name, met in zip(ids, outcomes, strict=True):
            if met is not None:
                self._counts.setdefault(name, DecayedCount()).add(version, met, 1.0, self._decay)

    def accuracy(self, name: str) -> float:
        """Share of passes expected of a type, in [0, 1]."""
        passed, judged = self._at_version(name)
        return (passed + PRIOR_OUTCOMES * PRIOR) / (judged + PRIOR_OUTCOMES)

    def difficulty(self, names: Sequence[str]) -> dict[str, float]:
        """Softmax of 1 - accuracy over some types; sums to 1."""
        weights = {name: math.exp(1 - self.accuracy(name)) for name in names}
        total = math.fsum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def ranks(self, names: Sequence[str]) -> Ranks:
        """[n] difficulty rank of each, 0 the hardest; equal ones rank by name."""
        order = sorted(range(len(names)), key=lambda i: (self.accuracy(names[i]), names[i]))
        ranks = [0] * len(names)
        for rank, index in enumerate(order):
            ranks[index] = rank
        return tuple(ranks)

    def dump(self) -> dict[str, Any]:
        """Plain data: what ``load`` takes back."""
        counts = {name: list(self._at_version(name)) for name in sorted(self._counts)}
        return {"version": self.version, "decay": self._decay, "types": counts}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> TypeDifficulty:
        """Undo ``dump``. Raises ``ValueError`` for anything that is none."""
        try:
            made = cls(float(data["decay"]))
            made.version = int(data["version"])
            for name, (passed, judged) in data["types"].items():
                if not 0 <= passed <= judged:
                    raise ValueError(f"{name}: {passed} passes of {judged} outcomes")
                made._counts[str(name)] = DecayedCount(float(passed), float(judged), made.version)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no pass rates by type: {error!r}") from None
        return made

    def _at_version(self, name: str) -> tuple[float, float]:
        """(passed, judged) of a type, as weighted now."""
        return self._counts.get(name, DecayedCount()).at(self.version, self._decay)
